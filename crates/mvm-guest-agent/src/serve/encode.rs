//! An answer as a frame that fits.
//!
//! A frame holds 256 KiB, and a guest may have ten thousand integrations with 4 KiB of output each.
//! What does not fit is shortened in the order in which it is least missed: outputs first, then the
//! entries of what is well. It is never cut off silently: counts of what was left out go along.

use mvm_protocol::answer::{Answer, AnswerFrame, ErrorAnswer, ErrorCode};
use mvm_protocol::frame::encode_json;
use mvm_protocol::lifecycle::{Outcome, Step};
use mvm_protocol::status::{
    DropInError, Health, IntegrationStatus, LastCheck, ProbeStatus, Status,
};
use mvm_protocol::{MAX_BODY, MAX_OUTPUT};

/// The answer as a frame.
pub(crate) fn frame(answer: Answer, id: Option<u64>) -> Vec<u8> {
    let mut frame = AnswerFrame { answer, id };
    if let Some(bytes) = try_encode(&frame) {
        return bytes;
    }
    for output in [MAX_OUTPUT / 4, MAX_OUTPUT / 16, MAX_OUTPUT / 64, 0] {
        shorten_outputs(&mut frame.answer, output);
        if let Some(bytes) = try_encode(&frame) {
            return bytes;
        }
    }
    for entries in [4096, 2048, 1024, 512, 256, 128, 64, 32] {
        omit_entries(&mut frame.answer, entries);
        if let Some(bytes) = try_encode(&frame) {
            return bytes;
        }
    }
    let error = ErrorAnswer::new(ErrorCode::Failed, "the answer does not fit into a frame");
    let frame = AnswerFrame {
        answer: Answer::Error(error),
        id,
    };
    try_encode(&frame).unwrap_or_default()
}

fn try_encode(frame: &AnswerFrame) -> Option<Vec<u8>> {
    let body = serde_json::to_vec(frame)
        .ok()
        .filter(|body| body.len() <= MAX_BODY)?;
    encode_json(&body).ok()
}

fn status(answer: &mut Answer) -> Option<&mut Status> {
    match answer {
        Answer::Status(status) => Some(status),
        Answer::Inspect(inspect) => Some(&mut inspect.status),
        _ => None,
    }
}

/// The steps that an answer reports, and how many it leaves out.
fn steps(answer: &mut Answer) -> Option<(&mut Vec<Step>, &mut usize)> {
    match answer {
        Answer::Ready(ready) => Some((&mut ready.steps, &mut ready.steps_omitted)),
        Answer::Awake(awake) => Some((&mut awake.steps, &mut awake.steps_omitted)),
        Answer::Error(error) => Some((error.steps.as_mut()?, &mut error.steps_omitted)),
        _ => None,
    }
}

fn shorten_outputs(answer: &mut Answer, limit: usize) {
    for detail in steps(answer)
        .into_iter()
        .flat_map(|(steps, _)| steps)
        .filter_map(|step| step.detail.as_mut())
    {
        keep_end(detail, limit);
    }
    if let Some(status) = status(answer) {
        for check in status
            .integrations
            .iter_mut()
            .filter_map(|entry| entry.last_check.as_mut())
        {
            shorten(check, limit);
        }
    }
    if let Answer::Inspect(inspect) = answer {
        for probe in &mut inspect.probes {
            if let Some(check) = &mut probe.last_check {
                shorten(check, limit);
            }
            if probe.value.to_string().len() > limit.max(64) {
                probe.value = serde_json::Value::Null;
                probe.ok = false;
                if let Some(check) = &mut probe.last_check {
                    check.truncated = true;
                }
            }
        }
    }
}

fn shorten(check: &mut LastCheck, limit: usize) {
    check.truncated |= keep_end(&mut check.output, limit);
}

/// Keeps the end, as the agent does from the start. True if something was cut.
fn keep_end(text: &mut String, limit: usize) -> bool {
    let mut from = text.len().saturating_sub(limit);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    text.drain(..from);
    from > 0
}

fn omit_entries(answer: &mut Answer, limit: usize) {
    if let Some((steps, omitted)) = steps(answer) {
        *omitted += omit(steps, limit, |step: &Step| {
            step.outcome == Outcome::Ok || step.outcome == Outcome::Skipped
        });
    }
    if let Some(status) = status(answer) {
        let well = |entry: &IntegrationStatus| {
            entry.health == Health::Healthy || entry.health == Health::Unchecked
        };
        status.integrations_omitted += omit(&mut status.integrations, limit, well);
    }
    match answer {
        Answer::Inspect(inspect) => {
            let well = |probe: &ProbeStatus| probe.ok;
            inspect.probes_omitted += omit(&mut inspect.probes, limit, well);
            let agent = &mut inspect.agent;
            agent.drop_in_errors_omitted +=
                omit(&mut agent.drop_in_errors, limit, |_: &DropInError| false);
        }
        Answer::Reloaded(reloaded) => {
            reloaded.errors_omitted += omit(&mut reloaded.errors, limit, |_: &DropInError| false);
        }
        Answer::Event(event) => {
            if let mvm_protocol::answer::Change::DropIns { drop_ins } = &mut event.change {
                drop_ins.errors_omitted +=
                    omit(&mut drop_ins.errors, limit, |_: &DropInError| false);
            }
        }
        _ => {}
    }
}

/// Keeps `limit` entries, those that are not well first, otherwise in their order.
fn omit<T>(entries: &mut Vec<T>, limit: usize, is_well: impl Fn(&T) -> bool) -> usize {
    let before = entries.len();
    let (well, mut kept): (Vec<T>, Vec<T>) = std::mem::take(entries).into_iter().partition(is_well);
    kept.extend(well);
    kept.truncate(limit);
    *entries = kept;
    before - entries.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_protocol::answer::{Change, Event, Reloaded};
    use mvm_protocol::status::{DropIns, Worker, WorkerState};
    use mvm_protocol::{Decoder, Frame, Lenient, Timestamp};

    fn entry(n: usize, health: Health, output: &str) -> IntegrationStatus {
        let last_check = Some(LastCheck {
            at: Timestamp(0),
            duration_ms: 1,
            exit_code: Some(0),
            signal: None,
            timed_out: false,
            output: output.to_owned(),
            truncated: false,
        });
        let name = format!("service-{n}");
        let since = Timestamp(0);
        IntegrationStatus {
            name,
            health: health.into(),
            since,
            consecutive_failures: 0,
            checks: 1,
            failures: 0,
            first_healthy_secs: None,
            last_check,
        }
    }

    fn round_trip(integrations: Vec<IntegrationStatus>) -> Status {
        let status = Status {
            lifecycle: mvm_protocol::status::Lifecycle::Running.into(),
            health: Health::Healthy.into(),
            uptime_secs: 1.0,
            now: None,
            worker: Worker {
                state: WorkerState::Idle.into(),
                since: Timestamp(0),
                last_busy_at: None,
                because: Vec::new(),
                held_by: Vec::new(),
                load1: 0.0,
                load1_counted: None,
                runnable: 0,
            },
            integrations,
            integrations_omitted: 0,
        };
        let mut decoder = Decoder::default();
        decoder.push(&frame(Answer::Status(status), Some(1)));
        let Some(Frame::Json(body)) = decoder.next_frame().unwrap() else {
            panic!()
        };
        match AnswerFrame::read(&body).unwrap() {
            AnswerFrame {
                answer: Answer::Status(status),
                id: Some(1),
            } => status,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_answer_that_fits_is_sent_whole() {
        let entries: Vec<_> = (0..50)
            .map(|n| entry(n, Health::Healthy, &"x".repeat(4096)))
            .collect();
        assert_eq!(round_trip(entries.clone()).integrations, entries);
    }

    #[test]
    fn outputs_are_shortened_before_entries_are_left_out() {
        let output = format!("{}\u{1}ü end", "\u{1}".repeat(4000));
        let entries = (0..200)
            .map(|n| entry(n, Health::Healthy, &output))
            .collect();
        let status = round_trip(entries);
        assert_eq!(
            (status.integrations.len(), status.integrations_omitted),
            (200, 0)
        );
        let check = status.integrations[0].last_check.as_ref().unwrap();
        assert!(
            check.truncated && check.output.ends_with("ü end"),
            "{check:?}"
        );
    }

    #[test]
    fn ten_thousand_steps_fit_and_the_failed_one_stays() {
        let step = |n: usize| Step {
            step: mvm_protocol::lifecycle::StepKind::Restore.into(),
            integration: Some(format!("service-{n}")),
            outcome: if n == 9_999 {
                Outcome::Failed
            } else {
                Outcome::Ok
            }
            .into(),
            duration_ms: 1,
            detail: Some("x".repeat(100)),
        };
        let steps: Vec<Step> = (0..10_000).map(step).collect();
        let mut error = ErrorAnswer::new(ErrorCode::SleepPrepFailed, "why");
        error.steps = Some(steps);
        let bytes = frame(Answer::Error(error), None);
        let answer = AnswerFrame::read(&bytes[4..]).unwrap().answer;
        let Answer::Error(ErrorAnswer {
            code: Lenient::Known(ErrorCode::SleepPrepFailed),
            steps: Some(steps),
            steps_omitted,
            ..
        }) = answer
        else {
            panic!("{answer:?}")
        };
        assert_eq!(steps[0].integration.as_deref(), Some("service-9999"));
        assert!(steps.len() >= 500);
        assert_eq!(steps.len() + steps_omitted, 10_000);
    }

    #[test]
    fn rejected_files_that_find_no_room_are_counted() {
        let error = |n: usize| DropInError {
            file: format!("/etc/mvm/integrations.d/service-{n}.json"),
            message: "x".repeat(200),
        };
        let errors: Vec<DropInError> = (0..3000).map(error).collect();
        let reloaded = Reloaded {
            integrations: 0,
            probes: 0,
            errors: errors.clone(),
            errors_omitted: 0,
        };
        let bytes = frame(Answer::Reloaded(reloaded), None);
        let Answer::Reloaded(reloaded) = AnswerFrame::read(&bytes[4..]).unwrap().answer else {
            panic!()
        };
        let drop_ins = DropIns {
            integrations: 0,
            probes: 0,
            errors,
            errors_omitted: 0,
        };
        let event = Event {
            at: Timestamp(0),
            change: Change::DropIns { drop_ins },
        };
        let bytes = frame(Answer::Event(event), None);
        let Answer::Event(Event {
            change: Change::DropIns { drop_ins },
            ..
        }) = AnswerFrame::read(&bytes[4..]).unwrap().answer
        else {
            panic!()
        };
        for (shown, omitted) in [
            (reloaded.errors.len(), reloaded.errors_omitted),
            (drop_ins.errors.len(), drop_ins.errors_omitted),
        ] {
            assert!(shown >= 256, "{shown}");
            assert_eq!(shown + omitted, 3000);
        }
    }

    #[test]
    fn unhealthy_entries_stay_and_omitted_ones_are_counted() {
        let entries = (0..10_000)
            .map(|n| {
                entry(
                    n,
                    if n == 9_999 {
                        Health::Unhealthy
                    } else {
                        Health::Healthy
                    },
                    "ok",
                )
            })
            .collect();
        let status = round_trip(entries);
        assert!(status.integrations.len() >= 500);
        assert_eq!(
            status.integrations.len() + status.integrations_omitted,
            10_000
        );
        assert_eq!(status.integrations[0].name, "service-9999");
        assert_eq!(status.integrations[1].name, "service-0");
    }
}
