//! What is answered over HTTP: to Prometheus, to scalers, and to `mvmctl fleet status`.
//!
//! ```text
//! listen    which addresses, and who may ask there
//! passed    systemd's sockets        tls    the certificate
//! listener  a socket that is listened on
//! door      by whom connections are served
//! server    connections: how many, for how long
//! guarded   a client that does not read is let go of
//! answers   paths, and what they answer
//! ```

mod answers;
pub(super) mod door;
mod guarded;
pub(super) mod listen;
mod listener;
mod passed;
mod server;
mod tls;
