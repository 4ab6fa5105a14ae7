//! What lifecycle commands are told of the sleep or wake, in their environment.

use super::journal::PAYLOAD;
use super::program::set_variable;
use crate::core::registry::LifecycleContext;
use std::ffi::OsString;
use std::path::Path;

/// Sets `MVM_GENERATION`, `MVM_CLONE`, and where there are any `MVM_CAUSE` and `MVM_PAYLOAD`.
pub(super) fn set(env: &mut Vec<(OsString, OsString)>, context: LifecycleContext, run_dir: &Path) {
    // The agent may have been started by such a command.
    let ours = ["MVM_CAUSE", "MVM_CLONE", "MVM_GENERATION", "MVM_PAYLOAD"];
    env.retain(|(name, _)| !ours.iter().any(|our| name == our));
    if let Some(cause) = context.cause {
        set_variable(env, "MVM_CAUSE", cause.as_str());
    }
    set_variable(env, "MVM_CLONE", if context.clone { "1" } else { "0" });
    set_variable(env, "MVM_GENERATION", &context.generation.to_string());
    let payload = run_dir.join(PAYLOAD);
    if payload.exists() {
        env.push(("MVM_PAYLOAD".into(), payload.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::lifecycle::Cause;

    fn told(context: LifecycleContext, run_dir: &Path) -> Vec<String> {
        let mut env = vec![
            ("MVM_CAUSE".into(), "stale".into()),
            ("MVM_PAYLOAD".into(), "/stale".into()),
        ];
        set(&mut env, context, run_dir);
        let told = env.iter();
        told.map(|(name, value)| format!("{}={}", name.display(), value.display()))
            .collect()
    }

    #[test]
    fn what_is_not_so_is_unset() {
        let dir = tempfile::tempdir().unwrap();
        let asleep = LifecycleContext {
            generation: 2,
            cause: None,
            clone: false,
        };
        assert_eq!(
            told(asleep, dir.path()),
            ["MVM_CLONE=0", "MVM_GENERATION=2"]
        );
        let payload = dir.path().join("payload.json");
        std::fs::write(&payload, "{}").unwrap();
        let restored = LifecycleContext {
            generation: 3,
            cause: Some(Cause::Restored),
            clone: true,
        };
        assert_eq!(
            told(restored, dir.path()),
            [
                "MVM_CAUSE=restored".to_owned(),
                "MVM_CLONE=1".to_owned(),
                "MVM_GENERATION=3".to_owned(),
                format!("MVM_PAYLOAD={}", payload.display()),
            ]
        );
    }
}
