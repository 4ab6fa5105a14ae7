//! What `cp` is given: a path here or in a guest, or a stream.

use crate::report::Failure;
use mvm_protocol::dev::exec::Path as GuestPath;
use std::path::PathBuf;

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Operand {
    /// `-`
    Stream,
    /// A file or folder here.
    Here(PathBuf),
    /// One in a guest.
    Guest {
        /// The VM's name, or an address.
        vm: String,
        path: GuestPath,
    },
}

/// Reads `NAME:PATH`, `unix:SOCKET:PATH`, `vsock:CID:PATH`, `-`, or a path here: whatever has no
/// colon, or a slash before its first one.
pub(super) fn read(text: &str) -> Result<Operand, Failure> {
    if text == "-" {
        return Ok(Operand::Stream);
    }
    let Some((vm, path)) = divided(text) else {
        return if text.is_empty() {
            Err(Failure::usage("a path is empty"))
        } else {
            Ok(Operand::Here(text.into()))
        };
    };
    let path = GuestPath::new(path.to_owned()).map_err(|problem| {
        Failure::usage(format!("{text}: {problem}")).hint(format!(
            "in the guest: {vm}:/{path}; a file here with a colon in its name: ./{text}"
        ))
    })?;
    Ok(Operand::Guest {
        vm: vm.to_owned(),
        path,
    })
}

/// The VM and the path in it.
fn divided(text: &str) -> Option<(&str, &str)> {
    // The path in the guest begins with a slash, and so it shows where the socket's path ends.
    if let Some(rest) = text.strip_prefix("unix:")
        && let Some(at) = rest.get(1..).and_then(|rest| rest.find(":/"))
    {
        let end = "unix:".len() + 1 + at;
        return Some((text.get(..end)?, text.get(end + 1..)?));
    }
    if let Some(rest) = text.strip_prefix("vsock:")
        && let Some((cid, path)) = rest.split_once(':')
    {
        return Some((text.get(.."vsock:".len() + cid.len())?, path));
    }
    let (vm, path) = text.split_once(':')?;
    (!vm.is_empty() && !vm.contains('/') && vm != "." && vm != "..").then_some((vm, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(vm: &str, path: &str) -> Operand {
        Operand::Guest {
            vm: vm.into(),
            path: GuestPath::new(path.into()).unwrap(),
        }
    }

    #[test]
    fn what_is_here_and_what_is_there() {
        for (text, expected) in [
            ("-", Operand::Stream),
            ("x", Operand::Here("x".into())),
            ("./web:/x", Operand::Here("./web:/x".into())),
            ("/tmp/web:/x", Operand::Here("/tmp/web:/x".into())),
            ("a/b:c", Operand::Here("a/b:c".into())),
            (":x", Operand::Here(":x".into())),
            ("web:/x", guest("web", "/x")),
            ("web:/a:b", guest("web", "/a:b")),
            (
                "unix:/run/v.sock:/etc/x",
                guest("unix:/run/v.sock", "/etc/x"),
            ),
            ("unix:v.sock:/a:/b", guest("unix:v.sock", "/a:/b")),
            ("vsock:3:/x", guest("vsock:3", "/x")),
        ] {
            assert_eq!(read(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_meant() {
        for (text, says) in [
            ("", "empty"),
            ("web:x", "begin with `/`"),
            ("web:", "begin with `/`"),
            ("vsock:3:x", "begin with `/`"),
            ("unix:v.sock", "begin with `/`"),
        ] {
            let message = read(text).unwrap_err().message;
            assert!(message.contains(says), "{text}: {message}");
        }
    }
}
