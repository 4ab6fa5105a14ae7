//! `mvmctl man`

use super::Context;
use crate::args;
use crate::render::shown::Shown;
use crate::report::{Failure, Outcome};
use std::path::PathBuf;

/// Write the manual pages
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Write a page for each command into this folder, not the main page to standard output
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl Args {
    #[expect(clippy::unused_async, reason = "all commands have one signature")]
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let mut command = args::command();
        if let Some(folder) = self.out {
            std::fs::create_dir_all(&folder)
                .and_then(|()| {
                    command.build();
                    clap_mangen::generate_to(command, &folder)
                })
                .map_err(|error| {
                    Failure::failed(format!(
                        "cannot write manual pages to {}: {error}",
                        folder.display()
                    ))
                    .hint("give --out a folder that you may write to")
                })?;
            context
                .ui
                .note(&format!("manual pages written to {}", folder.display()));
        } else {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            context
                .ui
                .print(&Shown::lines(&String::from_utf8_lossy(&page), "\t"))?;
        }
        Ok(Outcome::Done)
    }
}
