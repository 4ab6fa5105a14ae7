//! A hundred checks a second of `true`, against starting a shell with `true` and waiting for it.

use crate::agent::Agent;
use crate::cores::Cores;
use crate::{Result, bare};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const A_SECOND: u32 = 100;
const SECONDS: u32 = 20;

/// CPU time of one check in milliseconds: of the checker, the shell and `true`.
pub(crate) struct Figures {
    pub(crate) agent_ms: f64,
    pub(crate) bare_ms: f64,
}

pub(crate) fn measure(program: &Path, cores: Cores) -> Result<Figures> {
    let pinned = cores.pin()?;
    let drop_ins: Vec<String> = (0..A_SECOND)
        .map(|number| {
            format!(r#"{{"name":"check-{number}","health_cmd":"true","health_interval_secs":1}}"#)
        })
        .collect();
    let mut agent = pinned.server(|| Agent::start(program, &drop_ins))?;
    let mut connection = agent.connect()?;
    let pid = agent.pid().to_string();
    // The first second has start-up in it.
    std::thread::sleep(Duration::from_secs(2));
    let (cpu, checks) = (bare::cpu(&pid)?, count(&connection.ask(&status()?)?)?);
    std::thread::sleep(Duration::from_secs(u64::from(SECONDS)));
    let (cpu_after, checks_after) = (bare::cpu(&pid)?, count(&connection.ask(&status()?)?)?);
    drop(agent);
    let checks = checks_after.saturating_sub(checks);
    let due = u64::from(A_SECOND * SECONDS);
    if checks < due * 9 / 10 {
        return Err(format!("the agent ran {checks} checks where {due} were due").into());
    }

    let output = pinned.server(|| {
        Ok(Command::new(std::env::current_exe()?)
            .args([bare::SPAWN, &SECONDS.to_string(), &A_SECOND.to_string()])
            .output()?)
    })?;
    let bare: u64 = String::from_utf8(output.stdout)?.trim().parse()?;
    #[expect(clippy::cast_precision_loss, reason = "small figures")]
    Ok(Figures {
        agent_ms: (cpu_after - cpu) as f64 / checks as f64,
        bare_ms: bare as f64 / due as f64,
    })
}

fn status() -> Result<Vec<u8>> {
    Ok(mvm_protocol::frame::encode_json(br#"{"type":"status"}"#)?)
}

/// How many checks a status tells of.
fn count(body: &[u8]) -> Result<u64> {
    use mvm_protocol::answer::{Answer, AnswerFrame};
    match AnswerFrame::read(body)?.answer {
        Answer::Status(status) => Ok(status.integrations.iter().map(|it| it.checks).sum()),
        other => Err(format!("status was answered by {other:?}").into()),
    }
}
