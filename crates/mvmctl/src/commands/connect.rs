//! `mvmctl vm connect`

use super::Context;
use super::liveness;
use super::running::{self, Broken, Why};
use crate::report::{Failure, Outcome};
use crate::stdio::{self, PIECE, Stream, WriteError, Writer};
use crate::vm_name;
use crate::vm_state::VmStates;
use mvm_client::RawStream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tracing::Instrument as _;

/// Join standard input and output to a vsock port of a guest
///
/// The port can be any program's, such as sshd's behind systemd's vsock socket, and needs no agent.
/// It ends when the guest closes the connection, or when nobody reads its output any more. That
/// standard input has ended cannot be told to the guest: hybrid vsock knows no half of a connection.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Standard input and output are the other end, which is all that there is so far
    #[arg(long, required = true)]
    stdio: bool,

    #[command(flatten)]
    vm: vm_name::One,

    /// The vsock port in the guest
    #[arg(value_parser = clap::value_parser!(u32).range(1..i64::from(u32::MAX)))]
    port: u32,
}

/// Why the bytes no longer flow.
enum Over {
    /// The guest closed the connection, and all that it sent is written.
    Closed,
    Guest(std::io::Error),
    Input(std::io::Error),
    Output(WriteError),
    Signalled(i32),
    NotRunning(Why),
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let span = tracing::info_span!("vm", name = self.vm.name);
        self.connect(context).instrument(span).await
    }

    async fn connect(&self, context: &Context) -> Result<Outcome, Failure> {
        context.ui.give_stdout_away();
        let vm = self.vm.name.as_str();
        let inventory = context.inventory()?;
        let connected = async {
            let found = inventory.now(vm, context.deadlines().connect).await?;
            let endpoint = found.endpoint()?.clone().with_port(self.port);
            context
                .dialer
                .connect_raw(&endpoint, &context.deadlines())
                .await
        };
        let stream = connected.await;
        let stream = stream.map_err(|error| Failure::about(vm, &error))?;
        let mut asked = context.termination_requests();
        let states = VmStates::new(context);
        let mut state = states.of(vm)?;
        let over = tokio::select! {
            over = pump(stream) => over?,
            cut = liveness::not_running(&mut state) => Over::NotRunning(cut.why),
            number = asked.next() => Over::Signalled(number),
        };
        match over {
            Over::Closed | Over::Output(WriteError::Closed) => Ok(Outcome::Done),
            Over::Guest(error) => {
                Err(Failure::failed(format!("the connection broke off: {error}")).of(vm))
            }
            Over::Input(error) => {
                Err(Failure::failed(format!("cannot read standard input: {error}")).of(vm))
            }
            Over::Output(WriteError::Failed(error)) => {
                Err(Failure::failed(format!("cannot write to standard output: {error}")).of(vm))
            }
            Over::NotRunning(why) => Err(running::failed(vm, Broken::Cut(why))),
            Over::Signalled(number) => {
                Err(Failure::signalled(number, "and with it the connection").of(vm))
            }
        }
    }
}

async fn pump(stream: RawStream) -> Result<Over, Failure> {
    let mut stdin = stdio::read()?;
    let mut writer = Writer::start()?;
    let (mut from_guest, mut to_guest) = tokio::io::split(stream);
    let sending = async {
        while let Some(piece) = stdin.recv().await {
            match piece {
                // The reading half will say how it ended.
                Ok(bytes) => match to_guest.write_all(&bytes).await {
                    Ok(()) => {}
                    Err(_) => break,
                },
                Err(error) => return Over::Input(error),
            }
        }
        std::future::pending().await
    };
    let receiving = async {
        let mut buffer = vec![0; PIECE];
        loop {
            let read = tokio::select! {
                read = from_guest.read(&mut buffer) => read,
                error = writer.why() => return Over::Output(error),
            };
            let written = match read {
                Ok(0) => break,
                Ok(count) => {
                    let bytes = buffer.get(..count).unwrap_or_default().to_vec();
                    writer.write(Stream::Stdout, bytes).await
                }
                Err(error) => return Over::Guest(error),
            };
            if let Err(error) = written {
                return Over::Output(error);
            }
        }
        match writer.finish().await {
            Ok(()) => Over::Closed,
            Err(error) => Over::Output(error),
        }
    };
    Ok(tokio::select! {
        over = receiving => over,
        over = sending => over,
        () = stdio::unread() => Over::Output(WriteError::Closed),
    })
}
