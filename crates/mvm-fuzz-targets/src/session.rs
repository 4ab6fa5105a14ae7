//! A whole conversation: handshake, requests, then a watch to its end.
//!
//! The input's first four bytes are the sizes of the pieces in which the rest comes. However it is
//! cut, the conversation is the same, word for word; and each answer is delivered to the request
//! whose number it carries.

use crate::stream::{Script, check_error, ids, runtime};
use mvm_client::{Deadlines, Endpoint, Error, Session, Watcher};
use mvm_protocol::{Answer, Request};
use std::time::Duration;

/// The sizes of pieces, and all that an agent sends, from its handshake on.
pub fn session() -> impl FnMut(&[u8]) {
    let runtime = runtime();
    move |input| {
        let Some((sizes, stream)) = input.split_first_chunk::<4>() else {
            return;
        };
        let whole = runtime.block_on(conversation(Script::new(stream, &[])));
        let frames = stream.iter().position(|byte| *byte == b'\n');
        let ids = frames.map(|end| ids(&stream[end + 1..]));
        for (request, answered) in &whole.answered {
            let ids = ids.as_ref().expect("a handshake");
            let id = ids.get(*answered).copied().flatten();
            assert_eq!(id, Some(*request), "{ids:?}");
        }
        let cut = runtime.block_on(conversation(Script::new(stream, sizes)));
        assert_eq!(cut.told, whole.told);
    }
}

/// What came of it.
#[derive(Debug, Default)]
struct Told {
    /// Each answer, event and error.
    told: Vec<String>,
    /// The numbers of requests that were answered, each with which frame that was.
    answered: Vec<(u64, usize)>,
}

async fn conversation(stream: Script) -> Told {
    let mut told = Told::default();
    if let Err(error) = talk(stream, &mut told).await {
        check_error(&error);
        told.told.push(format!("{error:?}"));
    }
    told
}

async fn talk(stream: Script, told: &mut Told) -> Result<(), Error> {
    let endpoint = Endpoint::unix("/agent.sock");
    let deadlines = Deadlines::all(Duration::from_secs(3600));
    let mut session = match Session::over(stream, &endpoint, &deadlines).await {
        Ok(session) => session,
        // It quotes what had come by then, which is told at once if it is no handshake.
        Err(error) => {
            check_error(&error);
            told.told.push(error.code().to_owned());
            return Ok(());
        }
    };
    let several = [Request::Ping, Request::Status, Request::Inspect];
    let mut next = 0;
    for asked in [&several[..], &[Request::Hello]] {
        for answer in session.pipeline(asked).await? {
            if answer.is_ok() {
                told.answered.push((next as u64 + 1, next));
            }
            told.told.push(format!("{answer:?}"));
            next += 1;
        }
    }
    let (status, mut watcher) = Watcher::start(session, Duration::from_secs(60)).await?;
    told.answered.push((next as u64 + 1, next));
    told.told.push(format!("{status:?}"));
    while let Some(event) = watcher.next().await? {
        told.told.push(format!("{:?}", Answer::Event(event)));
    }
    Ok(())
}
