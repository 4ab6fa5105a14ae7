//! What an agent may get wrong, one thing at a time: for those who look for it.

/// Declares the faults: each with its name, the checks of `mvmctl conformance` that find it, and what
/// it does.
macro_rules! faults {
    ($($variant:ident: $name:literal, [$($check:literal),* $(,)?], $about:literal;)*) => {
        /// What the model gets wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Fault {
            $(#[doc = $about] $variant),*
        }

        impl Fault {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// By which it is asked for.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// What it does.
            pub fn about(self) -> &'static str {
                match self { $(Self::$variant => $about),* }
            }

            /// The checks that have to find it.
            pub fn found_by(self) -> &'static [&'static str] {
                match self { $(Self::$variant => &[$($check),*]),* }
            }
        }
    };
}

faults! {
    OtherProtocol: "other-protocol", ["answers/hello"], "says that it speaks protocol 2";
    ListsWhatItDoesNotServe: "lists-what-it-does-not-serve", ["answers/capabilities"], "lists `reload`, and does not know it";
    OtherHealth: "other-health", ["answers/status"], "calls a guest healthy whose integration is not";
    InspectLacks: "inspect-lacks", ["answers/inspect"], "leaves a field of `status` out of `inspect`";
    FutureTimes: "future-times", ["answers/times"], "tells of checks that are to come";
    OutOfOrder: "out-of-order", ["answers/in-order"], "answers the last of several requests first";
    ReadIsAFrame: "read-is-a-frame", ["answers/in-pieces"], "takes what it reads at once for a whole frame";
    TakesUnknownFields: "takes-unknown-fields", ["answers/unknown-fields"], "ignores fields that it does not know";
    Miscounts: "miscounts", ["answers/reload"], "counts a probe that it does not have";
    SilentAtTooLarge: "silent-at-too-large", ["requests/header-one-too-large", "requests/text-instead-of-frames"], "closes at a header over the cap, and does not say why";
    StaleCheck: "stale-check", ["answers/check"], "answers `check` with what it knew before";
    OneAtATime: "one-at-a-time", ["answers/stalled-peer"], "serves one connection after the other";
    BlocksOnUnread: "blocks-on-unread", ["answers/unread-answers"], "answers nobody while somebody does not read";
    FewConnections: "few-connections", ["answers/many-connections"], "leaves the ninth connection waiting";
    NeverCloses: "never-closes", ["answers/silence", "answers/half-a-frame"], "waits for a frame for ever";
    NoHeartbeats: "no-heartbeats", ["watch/heartbeats"], "says nothing while nothing happens";
    WatchBlocksOthers: "watch-blocks-others", ["watch/beside-requests"], "has room for one watch";
    SilentReload: "silent-reload", ["watch/drop-ins"], "does not tell a watch that drop-ins were reread";
    ForgetsPreparing: "forgets-preparing", ["watch/sleep"], "tells a watch of `ready` alone";
    SilentWake: "silent-wake", ["watch/wake"], "does not tell a watch that the guest runs again";
    NoSteps: "no-steps", ["sleep/ready"], "is ready without a step";
    ForgetsItsAnswer: "forgets-its-answer", ["sleep/replayed", "sleep/joined"], "gives the answer to `sleep-prep` once";
    TwoMasters: "two-masters", ["sleep/rival"], "lets any host's sleep in while one holds the guest";
    AnyTokenWakes: "any-token-wakes", ["sleep/wrong-token"], "wakes with whatever token";
    ChecksWhileReady: "checks-while-ready", ["sleep/no-checks"], "runs checks in a guest that is about to be frozen";
    ForgetsThatItSlept: "forgets-that-it-slept", ["sleep/wake"], "wakes and says that it was not ready";
    WakesTwice: "wakes-twice", ["sleep/wake-replayed"], "does a wake again that is repeated";
    WantsAToken: "wants-a-token", ["sleep/wake-without-token"], "does not wake without a token";
    NeverCounts: "never-counts", ["sleep/generation"], "has seen no restore, however many there were";
    NoTokenMadeUp: "no-token-made-up", ["sleep/token-made-up"], "answers with an empty token if it was given none";
    TokensWearOut: "tokens-wear-out", ["sleep/again"], "takes a token once";
    NeverWakesByItself: "never-wakes-by-itself", ["sleep/lease"], "does not count the lease down";
    SaysItTwice: "says-it-twice", ["sleep/lease"], "tells every wake of a lease that ran out once";
    SilentDeadline: "silent-deadline", ["sleep/deadline"], "does not answer a `sleep-prep` that has no time";
    PretendsToFreeze: "pretends-to-freeze", ["sleep/require-freeze"], "is ready with `require_freeze` though it froze nothing";
    TakesAnyLine: "takes-any-line", [], "answers OK to whatever comes first, and with another number";
    AgreesToAll: "agrees-to-all", [], "answers `pong` to everything but `hello`, at once";
    RefusesAll: "refuses-all", [], "answers everything but `hello` with an error that says nothing";
}
