//! Stories of the whole core, told with events and times.
