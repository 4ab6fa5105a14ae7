//! What mkGuest says of its arguments, and whether it takes what the agent takes.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use mvm_nix_tests::{Nix, read, refusal};
use mvm_protocol::drop_in::{self, Integration, OutputFormat, Probe};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::Command;

#[test]
fn every_problem_is_told_at_once() {
    let Some(nix) = Nix::find() else { return };
    let said = refusal(
        &nix,
        r#"{
          name = "web";
          servises = { };
          services.web = { command = "httpd"; user = "wbe"; evn.FOO = "bar"; };
          services."a/b".command = "true";
          services.blank.command = " \n";
          services.env = { command = "true"; env = { "1A" = "x"; B = true; }; };
          services.none = { };
          healthChecks.web = { helthCmd = "true"; healthIntervalSecs = 0; critical = "yes"; };
          healthChecks.".hidden" = { health_cmd = "true"; };
          healthChecks.list = [ ];
          probes.disk = { command = "df"; intervalSecs = 86401; output = "yaml"; checkpointCmd = "x"; };
          probes.mem = { intervalSecs = 5; };
          probes.user = { command = "id"; user = "nobdy"; };
          users.web.uid = 1000;
          users.db = { uid = 1000; };
          users.root.uid = 0;
          users."1up".uid = 1002;
          users.dots = { uid = 1003; home = "/var/../etc"; };
          users.etc = { uid = 1004.0; home = "/etc"; };
          packages = "curl";
          hostname = "a b";
          agent = { port = 0; busyTreshold = 0.5; busySignals = [ "load" ]; };
          dev = true;
          formats = [ "initrd" "squashfs" ];
        }"#,
    );
    let expected = r#"mkGuest "web": 33 problems
  formats: [ "initrd" "squashfs" ] is not a list of one of "initrd", "erofs", "ext4", each once
  hostname: "a b" is not 1 to 64 of A-Z, a-z, 0-9, '.' and '-', a letter or digit first, or null for the guest's name
  packages: "curl" is not a list of derivations
  servises: unknown; did you mean `services`?
  agent.busySignals: [ "load" ] is not a list of one of "loadavg", "cpu", "pressure", "session", "inhibit"
  agent.port: 0 is not a vsock port: a whole number from 1 to 4294967294
  agent.busyTreshold: unknown; did you mean `busyThreshold`?
  services."a/b": the name is not 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-', no '.' first
  services.blank.command: " \n" is not a shell command that is not blank: text, a path or a derivation
  services.none.command: missing; a shell command that is not blank: text, a path or a derivation is asked for
  services.web.evn: unknown; did you mean `env`?
  services.env.env."1A": the name is not A-Z, a-z, 0-9 and '_', no digit first
  services.env.env.B: true is not text, a whole number, a path or a derivation
  healthChecks.".hidden": the name is not 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-', no '.' first
  healthChecks.".hidden".health_cmd: unknown; did you mean `healthCmd`?
  healthChecks.list: [ ] is not a set
  healthChecks.web.critical: "yes" is not true or false
  healthChecks.web.healthIntervalSecs: 0 is not a number over 0 and at most 86400 (seconds)
  healthChecks.web.helthCmd: unknown; did you mean `healthCmd`?
  probes.disk.intervalSecs: 86401 is not a number over 0 and at most 86400 (seconds)
  probes.disk.output: "yaml" is not one of "text", "json"
  probes.disk.checkpointCmd: unknown; there are command, commandArgv, intervalSecs, output, timeoutSecs, user
  probes.mem.command: missing; a shell command that is not blank: text, a path or a derivation is asked for, or commandArgv
  users."1up": the name is not 1 to 32 of A-Z, a-z, 0-9, '.', '_' and '-', a letter or '_' first
  users.dots.home: "/var/../etc" is not an absolute path of A-Z, a-z, 0-9, '.', '_', '-' and '/', no part of it dots alone, and no folder of the system's, or null for /var/lib/NAME
  users.etc.home: "/etc" is not an absolute path of A-Z, a-z, 0-9, '.', '_', '-' and '/', no part of it dots alone, and no folder of the system's, or null for /var/lib/NAME
  users.etc.uid: 1004.0 is not a whole number from 1 to 65533
  users.root.uid: 0 is not a whole number from 1 to 65533
  services.web.user: there is no user "wbe" in users; did you mean `web`?
  probes.user.user: there is no user "nobdy" in users; did you mean `nobody`?
  users.root: every guest has it already
  users.db.uid: 1000 is also that of web
  dev: true takes the agent's dev build, which this mkGuest was made without (agentDev)"#;
    assert_eq!(said, expected);
}

#[test]
fn whatever_it_is_given_it_says_what_is_wrong() {
    let Some(nix) = Nix::find() else { return };
    for (arguments, expected) in [
        ("5", "mkGuest: 1 problem\n  its argument: 5 is not a set"),
        ("{ }", "mkGuest: 1 problem\n  name: missing; 1 to 64 of A-Z"),
        (
            r#"{ name = "x"; services = [ ]; agent = null; }"#,
            "mkGuest \"x\": 2 problems\n  agent: null is not a set\n  services: [ ] is not a set",
        ),
        (
            r#"{ name = "x"; services = pkgs.curl; kernel = 6; dev = "no"; }"#,
            "mkGuest \"x\": 3 problems\n  dev: \"no\" is not true or false\n  kernel: 6 is not a kernel",
        ),
        (
            r#"{ name = "x"; formats = [ "erofs" "erofs" ]; kernelModules = [ "a b" ]; }"#,
            "mkGuest \"x\": 2 problems\n  formats: [ \"erofs\" \"erofs\" ] is not a list of one of",
        ),
        // Nix writes six digits, by which 86400.01 is 86400, and has numbers that JSON has not.
        (
            r#"{ name = "x"; probes.p = { command = "df"; intervalSecs = 86400.01; }; }"#,
            "mkGuest \"x\": 1 problem\n  probes.p.intervalSecs: 86400.01 is not a number over 0 and at most",
        ),
        (
            r#"{ name = "x"; healthChecks.a.startupGraceSecs = 1.0e308 * 10; }"#,
            "mkGuest \"x\": 1 problem\n  healthChecks.a.startupGraceSecs: inf is not a number, 0 or more and at most 1e18",
        ),
        (
            r#"{ name = "x"; agent.busyThreshold = 1.0e308 * 10; }"#,
            "mkGuest \"x\": 1 problem\n  agent.busyThreshold: inf is not a number over 0, and finite",
        ),
    ] {
        let said = refusal(&nix, arguments);
        assert!(said.starts_with(expected), "{said}");
    }
    let said = nix.eval(r#"(mkGuestOf { kernel = null; } { name = "x"; }).drvPath"#);
    let said = said.unwrap_err();
    assert!(
        said.contains("kernel: missing; this mkGuest was made without"),
        "{said}"
    );
}

/// A list of words in place of a shell's text.
#[test]
fn a_command_is_text_or_a_list() {
    let Some(nix) = Nix::find() else { return };
    let check = r#"{ name = "x"; healthChecks.a = { healthArgv = [ "/bin/check" "a b" ]; restoreCmd = "true"; };
          probes.p.commandArgv = [ pkgs.curl "--version" ]; }"#;
    nix.eval(&format!("(mkGuest {check}).drvPath")).unwrap();
    let render = format!(
        "(import {}/nix/render.nix)",
        mvm_nix_tests::repository().display()
    );
    let written = nix.eval(&format!(
        r#"let filled = builtins.mapAttrs (_: field: field.default or null) fields.probe; in
           ({render}.probeFiles {{ p = filled // {{ commandArgv = [ "/bin/check" "a b" ]; }}; }})."p.json""#
    ));
    let written = written.unwrap();
    let text = written.as_str().unwrap();
    let read = drop_in::read::<Probe>(text.as_bytes()).unwrap();
    assert_eq!(read.run().unwrap(), ["/bin/check", "a b"]);
    for (fields, expected) in [
        (
            r#"healthCmd = "true"; healthArgv = [ "/bin/true" ];"#,
            "healthChecks.a.healthArgv: healthCmd is given as well: give one of the two",
        ),
        (
            r#"restoreArgv = [ "true" ];"#,
            "healthChecks.a.restoreArgv: [ \"true\" ] is not a list of a program, by its absolute path",
        ),
        (
            "checkpointArgv = [ ];",
            "healthChecks.a.checkpointArgv: [ ] is not a list of a program",
        ),
        (
            r#"personalizeArgv = "/x";"#,
            "healthChecks.a.personalizeArgv: \"/x\" is not a list",
        ),
    ] {
        let said = refusal(
            &nix,
            &format!(r#"{{ name = "x"; healthChecks.a = {{ {fields} }}; }}"#),
        );
        assert!(said.contains(expected), "{said}");
    }
    // The module says the same of what its options cannot.
    let both = r#"{ name = "x"; probes.p = { command = "df"; commandArgv = [ "/bin/df" ]; }; }"#;
    assert!(refusal(&nix, both).contains("probes.p.commandArgv: command is given as well"));
}

/// The agent's defaults have a timeout that is longer than such an interval.
#[test]
fn a_timeout_may_exceed_its_interval() {
    let Some(nix) = Nix::find() else { return };
    let check =
        r#"{ name = "x"; healthChecks.a = { healthCmd = "true"; healthIntervalSecs = 5; }; }"#;
    nix.eval(&format!("(mkGuest {check}).drvPath")).unwrap();
}

/// Whom the agent looks up (crates/mvm-guest-agent/src/edge/users.rs), by name or number.
/// A part of the table of fields: snake_case names and defaults. What is required has none.
fn table(nix: &Nix, part: &str) -> BTreeMap<String, Value> {
    let expression = format!(
        r#"builtins.listToAttrs (map (name: {{
             name = text.snakeCase name;
             value = fields.{part}.${{name}}.default or "required";
           }}) (builtins.attrNames fields.{part}))"#
    );
    let table = nix.eval(&expression).unwrap();
    serde_json::from_value(table).unwrap()
}

fn by_name(fields: &[(&str, Value)]) -> BTreeMap<String, Value> {
    let named = fields
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone()));
    named.collect()
}

/// Whole seconds as Nix has them.
fn secs(duration: std::time::Duration) -> Value {
    json!(duration.as_secs())
}

/// A field that the agent gets and mkGuest does not know fails to compile here.
#[test]
fn health_checks_are_integrations() {
    let Some(nix) = Nix::find() else { return };
    let Integration {
        name: _,
        health_cmd,
        health_argv,
        health_interval_secs,
        health_timeout_secs,
        startup_grace_secs,
        failure_threshold,
        success_threshold,
        checkpoint_cmd,
        checkpoint_argv,
        personalize_cmd,
        personalize_argv,
        restore_cmd,
        restore_argv,
        checkpoint_timeout_secs,
        personalize_timeout_secs,
        restore_timeout_secs,
        critical,
        user,
    } = drop_in::read(br#"{"name":"x"}"#).unwrap();
    assert_eq!(
        (&health_cmd, &checkpoint_cmd, &restore_cmd),
        (&None, &None, &None)
    );
    assert_eq!(personalize_cmd, None);
    assert_eq!(
        [
            &health_argv,
            &checkpoint_argv,
            &restore_argv,
            &personalize_argv
        ],
        [&None; 4]
    );
    assert_eq!(user, None);
    let agents = by_name(&[
        ("health_cmd", Value::Null),
        ("health_argv", Value::Null),
        (
            "health_interval_secs",
            secs(health_interval_secs.duration()),
        ),
        ("health_timeout_secs", secs(health_timeout_secs.duration())),
        ("startup_grace_secs", secs(startup_grace_secs.duration())),
        ("failure_threshold", json!(failure_threshold.count())),
        ("success_threshold", json!(success_threshold.count())),
        ("checkpoint_cmd", Value::Null),
        ("checkpoint_argv", Value::Null),
        ("personalize_cmd", Value::Null),
        ("personalize_argv", Value::Null),
        ("restore_cmd", Value::Null),
        ("restore_argv", Value::Null),
        (
            "personalize_timeout_secs",
            secs(personalize_timeout_secs.duration()),
        ),
        (
            "checkpoint_timeout_secs",
            secs(checkpoint_timeout_secs.duration()),
        ),
        (
            "restore_timeout_secs",
            secs(restore_timeout_secs.duration()),
        ),
        ("critical", json!(critical)),
        ("user", Value::Null),
    ]);
    assert_eq!(table(&nix, "healthCheck"), agents);
}

#[test]
fn probes_are_probes() {
    let Some(nix) = Nix::find() else { return };
    let Probe {
        name: _,
        command: _,
        command_argv,
        interval_secs,
        timeout_secs,
        output,
        user,
    } = drop_in::read(br#"{"name":"x","command":"true"}"#).unwrap();
    assert_eq!(
        (output, user, command_argv),
        (OutputFormat::Text, None, None)
    );
    let agents = by_name(&[
        ("command", Value::Null),
        ("command_argv", Value::Null),
        ("interval_secs", secs(interval_secs.duration())),
        ("timeout_secs", secs(timeout_secs.duration())),
        ("output", json!("text")),
        ("user", Value::Null),
    ]);
    assert_eq!(table(&nix, "probe"), agents);
}

/// The agent's `--help` has every setting, and its default in brackets.
#[test]
fn settings_are_the_agents() {
    let Some(nix) = Nix::find() else { return };
    let help = Command::new(&nix.parts.agent)
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let mut agents = BTreeMap::new();
    for line in help.lines() {
        let Some(flag) = line.trim_start().strip_prefix("--") else {
            continue;
        };
        let name = flag.split(' ').next().unwrap().replace('-', "_");
        // The image has its own folders; the rest is no setting.
        if name.ends_with("_dir")
            || matches!(
                &*name,
                "config" | "no_system_effects" | "check_config" | "payload" | "version,"
            )
        {
            continue;
        }
        let default = line
            .rsplit_once('(')
            .and_then(|(_, rest)| rest.strip_suffix(')'));
        let default = match (&*name, default) {
            ("listen", Some(address)) => {
                let port = address.strip_prefix("default vsock:").unwrap();
                agents.insert("port".to_owned(), port.parse().unwrap());
                continue;
            }
            ("busy_signals", Some(one)) => json!([one]),
            ("freeze", Some(word)) => json!(word),
            ("freeze_exempt" | "expose", Some("none")) => json!([]),
            (_, Some(default)) => serde_json::from_str(default).unwrap(),
            (_, None) => Value::Null,
        };
        agents.insert(name, default);
    }
    assert_eq!(table(&nix, "agent"), agents);
}

/// docs/mkguest.md has each field with its default.
#[test]
fn the_documents_have_every_field() {
    let Some(nix) = Nix::find() else { return };
    let document = read("docs/mkguest.md");
    let expression = r#"builtins.mapAttrs (_: builtins.mapAttrs (_: field: {
        default = if field ? default then builtins.toJSON field.default else "required";
        inherit (field) what;
      })) fields"#;
    let tables = nix.eval(expression).unwrap();
    for (part, fields) in tables.as_object().unwrap() {
        for (name, field) in fields.as_object().unwrap() {
            let default = match field["default"].as_str().unwrap() {
                "required" => "required".to_owned(),
                "null" => "none".to_owned(),
                "{}" => "`{ }`".to_owned(),
                list if list.starts_with('[') => {
                    let items = list.trim_matches(['[', ']']).replace(',', " ");
                    if items.is_empty() {
                        "`[ ]`".to_owned()
                    } else {
                        format!("`[ {items} ]`")
                    }
                }
                other => format!("`{other}`"),
            };
            let what = field["what"].as_str().unwrap();
            let row = format!("| `{name}` | {default} | {what} |");
            assert!(document.contains(&row), "of {part} there is no line\n{row}");
        }
    }
}
