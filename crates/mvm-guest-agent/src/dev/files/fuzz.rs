//! Packing and unpacking as the process of a `get` or `put` does it, without the process.

use super::content::Content;
use super::target::Target;
use super::{pack as packing, unpack as unpacking};
use mvm_protocol::dev::channel::FILE;
use mvm_protocol::frame::{encode_data, encode_json};
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::path::Path;

/// Unpacks an archive as a host sends it: whether it is there now.
pub(in crate::dev) fn unpack(stream: &[u8], to: &Path) -> bool {
    let mut frames = Vec::new();
    for piece in stream.chunks(60_000) {
        frames.extend(encode_data(FILE, piece).unwrap());
    }
    frames.extend(encode_json(br#"{"type":"put-end"}"#).unwrap());
    let target = Target::new(to.to_owned()).unwrap_or_else(|error| panic!("{error:?}"));
    let folder = unpacking::Folder::make(&target).unwrap_or_else(|error| panic!("{error:?}"));
    folder.fill(Content::new(&*frames), None).is_ok()
}

/// Packs a folder.
pub(in crate::dev) fn pack(folder: &Path) -> Vec<u8> {
    let mut output = tempfile::tempfile().unwrap();
    let sent: File = output.try_clone().unwrap();
    packing::folder(folder, sent).unwrap_or_else(|error| panic!("{error:?}"));
    let mut stream = Vec::new();
    output.rewind().unwrap();
    output.read_to_end(&mut stream).unwrap();
    stream
}
