//! What lifecycle commands are told of the sleep or wake, in their environment.

use super::journal::PAYLOAD;
use crate::core::registry::LifecycleContext;
use std::path::Path;
use std::process::Command;

/// Sets `MVM_GENERATION`, `MVM_CLONE`, and where there are any `MVM_CAUSE` and `MVM_PAYLOAD`.
pub(super) fn set(command: &mut Command, context: LifecycleContext, run_dir: &Path) {
    if let Some(cause) = context.cause {
        command.env("MVM_CAUSE", cause.as_str());
    }
    let payload = run_dir.join(PAYLOAD);
    if payload.exists() {
        command.env("MVM_PAYLOAD", payload);
    }
    command
        .env("MVM_GENERATION", context.generation.to_string())
        .env("MVM_CLONE", if context.clone { "1" } else { "0" });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::lifecycle::Cause;

    fn told(context: LifecycleContext, run_dir: &Path) -> Vec<String> {
        let mut command = Command::new("true");
        set(&mut command, context, run_dir);
        let told = command.get_envs().map(|(name, value)| {
            let name = name.to_str().unwrap();
            let value = value.map_or("(unset)", |value| value.to_str().unwrap());
            format!("{name}={value}")
        });
        told.collect()
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
