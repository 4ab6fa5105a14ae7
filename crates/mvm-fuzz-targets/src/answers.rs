//! What a client reads: answers of an agent that it has no reason to trust.
//!
//! What is read reads the same when it is written again, but for the last digit of a number that is no
//! whole one: serde_json rounds it to one of the nearest two.

use mvm_protocol::answer::{Answer, AnswerOf};
use mvm_protocol::dev::DevAnswer;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// One body of an answer.
pub fn answers() -> impl FnMut(&[u8]) {
    |body| {
        check::<Answer>(body);
        check::<DevAnswer>(body);
    }
}

/// A body as one kind of answer.
fn check<A: DeserializeOwned + Serialize>(body: &[u8]) {
    if let Ok(frame) = AnswerOf::<A>::read(body) {
        let written = serde_json::to_vec(&frame).unwrap();
        let again = AnswerOf::<A>::read(&written).unwrap();
        let [again, written] = [again, frame].map(|frame| serde_json::to_value(frame).unwrap());
        assert!(is_same(&again, &written), "{again} is not {written}");
    }
}

fn is_same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len()
                && one
                    .iter()
                    .zip(other)
                    .all(|(one, other)| is_same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            let has_it = |(key, one)| other.get(key).is_some_and(|other| is_same(one, other));
            one.len() == other.len() && one.iter().all(has_it)
        }
        (Value::Number(one), Value::Number(other)) if one.is_f64() && other.is_f64() => {
            let [Some(one), Some(other)] = [one, other].map(serde_json::Number::as_f64) else {
                return false;
            };
            (one - other).abs() <= one.abs() * f64::EPSILON
        }
        _ => one == other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_may_differ_in_their_last_digit_and_nothing_else_may() {
        let answer =
            |load1: f64, runnable: u32| json!({"worker": [{"load1": load1, "runnable": runnable}]});
        let one = answer(1.000_001_947_328_066_8e95, 3);
        assert!(is_same(&one, &answer(1.000_001_947_328_066_7e95, 3)));
        assert!(!is_same(&one, &answer(1.000_001_947_328_1e95, 3)));
        assert!(!is_same(&one, &answer(1.000_001_947_328_066_8e95, 4)));
        assert!(!is_same(&one, &json!({"worker": []})));
    }
}
