//! How a guest's clock stands to this host's.

use mvm_protocol::Timestamp;
use serde::{Serialize, Serializer};
use std::time::{Duration, Instant, SystemTime};

/// By how much a guest's clock may be off before it is told.
const TOLERANCE: Duration = Duration::from_secs(1);

/// By how much a guest's clock is off. As data, in milliseconds: over 0 if it is ahead.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Skew {
    ms: i64,
    /// Half the round trip of the answer: the guest's time was read somewhen within it.
    exact_to: Duration,
}

/// An answer, and the skew of the clock that it was given by.
#[derive(Debug, Serialize)]
pub(crate) struct Timed<T> {
    #[serde(rename = "clock_skew_ms", skip_serializing_if = "Option::is_none")]
    pub(crate) skew: Option<Skew>,
    #[serde(flatten)]
    pub(crate) answer: T,
}

/// Asks, and compares the time that the answer tells with this host's in the middle of the round
/// trip. An answer that tells none has no skew.
pub(crate) async fn timed<T, E>(
    ask: impl Future<Output = Result<T, E>>,
    now_of: impl FnOnce(&T) -> Option<Timestamp>,
) -> Result<Timed<T>, E> {
    let (sent, began) = (SystemTime::now(), Instant::now());
    let answer = ask.await?;
    let exact_to = began.elapsed() / 2;
    let host = Timestamp(epoch_ms(sent + exact_to));
    let skew = now_of(&answer).map(|guest| Skew {
        ms: guest.0.saturating_sub(host.0),
        exact_to,
    });
    Ok(Timed { skew, answer })
}

impl Skew {
    /// `3m20s behind`, if that is more than a clock is off by now and then.
    pub(crate) fn told(self) -> Option<(Duration, &'static str)> {
        let off = Duration::from_millis(self.ms.unsigned_abs());
        let direction = if self.ms < 0 { "behind" } else { "ahead" };
        (off.saturating_sub(self.exact_to) > TOLERANCE).then_some((off, direction))
    }
}

impl Serialize for Skew {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(self.ms)
    }
}

/// This host's time.
pub(crate) fn now() -> Timestamp {
    Timestamp(epoch_ms(SystemTime::now()))
}

fn epoch_ms(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skew_is_told_if_it_is_more_than_the_round_trip_can_explain() {
        let told = |ms, exact_to_ms| {
            let exact_to = Duration::from_millis(exact_to_ms);
            let (off, direction) = Skew { ms, exact_to }.told()?;
            Some((off.as_millis(), direction))
        };
        assert_eq!(told(1000, 0), None);
        assert_eq!(told(1001, 0), Some((1001, "ahead")));
        assert_eq!(told(-1500, 0), Some((1500, "behind")));
        assert_eq!(told(-1500, 500), None);
        assert_eq!(told(-1501, 500), Some((1501, "behind")));
        assert_eq!(told(i64::MIN, 0), Some((1 << 63, "behind")));
    }
}
