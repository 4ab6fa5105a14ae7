//! `--payload FILE`: what a restored guest is told of itself.

use crate::report::Failure;
use mvm_protocol::lifecycle::{MAX_PAYLOAD, Payload};
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

/// What is read at most of a payload before it is refused. A file tells its size without that.
const MOST: u64 = 1024 * 1024;

/// The option. Its value never is the payload itself: a command line is seen by all users.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PayloadArg {
    /// A JSON object of up to 64 KiB for the guest, there as payload.json in the agent's run directory
    /// before anything of its work runs; - is standard input
    #[arg(long, value_name = "FILE")]
    payload: Option<PathBuf>,
}

impl PayloadArg {
    /// As if that had been given.
    pub(crate) fn of(file: PathBuf) -> Self {
        Self {
            payload: Some(file),
        }
    }

    /// Reads it, if there is one.
    pub(crate) fn read(&self) -> Result<Option<Payload>, Failure> {
        let Some(path) = &self.payload else {
            return Ok(None);
        };
        let about = |why: String| Failure::usage(format!("--payload {}: {why}", path.display()));
        let text = if path.as_os_str() == "-" {
            read(std::io::stdin().lock())
        } else {
            File::open(path).and_then(|file| {
                let size = file.metadata()?.len();
                if size > MOST {
                    Ok(Err(size))
                } else {
                    read(file)
                }
            })
        };
        let text = match text {
            Ok(Ok(text)) => text,
            Ok(Err(size)) => {
                let why = format!("{size} bytes or more; at most {MAX_PAYLOAD} are taken");
                return Err(about(why));
            }
            Err(error) => return Err(about(error.to_string())),
        };
        Payload::new(&text).map(Some).map_err(about)
    }
}

/// All of it, or how long it is at least if that is too much.
fn read(from: impl Read) -> std::io::Result<Result<String, u64>> {
    let mut text = String::new();
    let size = from.take(MOST + 1).read_to_string(&mut text)?;
    Ok(if size as u64 > MOST {
        Err(MOST + 1)
    } else {
        Ok(text)
    })
}
