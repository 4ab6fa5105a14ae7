//! The NixOS module, evaluated with a stand-in for nixpkgs' lib: types, refusals in the module
//! system's way, and the same files as mkGuest's.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use mvm_nix_tests::{Files, Nix, read};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;

const CHECKS: &str = r#"
  healthChecks.web = { healthCmd = "curl -sf 'http://localhost/'"; healthIntervalSecs = 5; };
  healthChecks.db = { checkpointCmd = pkgs.writeShellScript "save" "true"; critical = false; user = "db"; };
  probes.disk = { command = "df -h / | awk '{ print $5 }'"; output = "text"; user = "1000"; };
"#;

/// An expression: what the module makes of values for its options.
fn service(values: &str) -> String {
    format!("lib.evalService {{ inherit module pkgs; values = {{ enable = true; {values} }}; }}")
}

#[test]
fn it_writes_what_mkguest_writes() {
    let Some(nix) = Nix::find() else { return };
    let etc = nix.build(&format!(
        r#"let it = {}; in pkgs.runCommand "etc" {{ }} ''
          {bb} mkdir $out
          {bb} cp ${{it.environment.etc."mvm/agent.json".source}} $out/agent.json
          {bb} cp -r ${{it.environment.etc."mvm/integrations.d".source}} $out/integrations.d
          {bb} cp -r ${{it.environment.etc."mvm/probes.d".source}} $out/probes.d
        ''"#,
        service(&format!(
            "{CHECKS} port = 5252; settings.busyThreshold = 0.5;"
        )),
        bb = "${pkgs.pkgsStatic.busybox}/bin/busybox",
    ));
    let guest = nix.build(&format!(
        r#"mkGuest {{ name = "x"; users.db.uid = 1000; agent = {{ port = 5252; busyThreshold = 0.5; }}; {CHECKS} }}"#
    ));
    let guest = Files::of_initrd(&guest.join("initrd"));
    for file in [
        "agent.json",
        "integrations.d/web.json",
        "integrations.d/db.json",
        "probes.d/disk.json",
    ] {
        let modules = fs::read_to_string(etc.join(file)).unwrap();
        assert_eq!(modules, guest.text(&format!("etc/mvm/{file}")), "{file}");
    }
    // Of its own it has what goes with systemd alone.
    let own = fs::read_to_string(etc.join("integrations.d/journald.json")).unwrap();
    let own: Value = serde_json::from_str(&own).unwrap();
    let shipped: Value = serde_json::from_str(&read("packaging/systemd/journald.json")).unwrap();
    let program = |of: &Value| {
        let command = of["restore_cmd"].as_str().unwrap().to_owned();
        let (_, name) = command.rsplit_once('/').unwrap();
        name.rsplit_once("journald")
            .map(|(_, name)| name.to_owned())
    };
    assert_eq!(program(&own), program(&shipped));
    assert_eq!(
        (&own["name"], &own["critical"]),
        (&shipped["name"], &shipped["critical"])
    );
}

#[test]
fn the_options_have_real_types() {
    let Some(nix) = Nix::find() else { return };
    for (values, expected) in [
        (
            "healthChecks.web.healthIntervalSecs = 0;",
            "option `services.mvm-guest-agent.healthChecks.web.healthIntervalSecs' is not of type `a number over 0 and at most 86400 (seconds)'",
        ),
        (
            "settings.busyThreshold = -1;",
            "option `services.mvm-guest-agent.settings.busyThreshold' is not of type `a number",
        ),
        (
            "probes.disk = { command = \"df\"; user = \"a b\"; };",
            "services.mvm-guest-agent.probes.disk.user: \"a b\" is not a user's name or number",
        ),
        (
            "healthChecks.web.helthCmd = \"true\";",
            "The option `services.mvm-guest-agent.healthChecks.web.helthCmd' does not exist",
        ),
        (
            "probes.disk = { };",
            "services.mvm-guest-agent.probes.disk.command: missing; a shell command",
        ),
        (
            "healthChecks.web = { healthCmd = \"true\"; healthArgv = [ \"/bin/true\" ]; };",
            "services.mvm-guest-agent.healthChecks.web.healthArgv: healthCmd is given as well",
        ),
        (
            "probes.disk.commandArgv = [ \"df\" ];",
            "services.mvm-guest-agent.probes.disk.commandArgv: [ \"df\" ] is not a list of a program",
        ),
        (
            "port = \"52\";",
            "option `services.mvm-guest-agent.port' is not of type `integer between 1 and",
        ),
        (
            "settings.port = 52;",
            "The option `services.mvm-guest-agent.settings.port' does not exist",
        ),
        (
            "settings.busySignals = [ ];",
            "is not of type `non-empty list of one of [\"loadavg\",",
        ),
        (
            "probes.\"a/b\".command = \"true\";",
            "services.mvm-guest-agent.probes.\"a/b\": the name is not",
        ),
        (
            "healthChecks.web.healthCmd = \" \";",
            "services.mvm-guest-agent.healthChecks.web.healthCmd: \" \" is not a shell command",
        ),
    ] {
        let said = nix.eval(&format!("builtins.attrNames ({})", service(values)));
        let said = said.unwrap_err();
        assert!(said.contains(expected), "{values}: {said}");
    }
    let off = nix.eval("lib.evalService { inherit module pkgs; values = { probes = { }; }; } // { service = null; }");
    assert_eq!(
        off.unwrap(),
        json!({ "service": null }),
        "nothing unless it is enabled"
    );
}

/// One description of the service: packaging/mvm-guest-agent.service. Nothing in it is inherited by
/// checks, but what the agent itself takes back (its OOM score).
#[test]
fn its_service_is_that_of_the_packaging() {
    let Some(nix) = Nix::find() else { return };
    let unit = read("packaging/mvm-guest-agent.service");
    let mut section = "";
    let mut packaged = BTreeMap::new();
    for line in unit.lines().filter(|line| !line.starts_with('#')) {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']);
        } else if let Some((key, value)) = line.split_once('=') {
            packaged.insert((section, key), value);
        }
    }
    let it = nix
        .eval(&format!(
            "({}).systemd.services.mvm-guest-agent",
            service(CHECKS)
        ))
        .unwrap();
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    // Programs are where NixOS has them.
    let program = |text: &str| {
        let (path, arguments) = text.split_once(' ').unwrap_or((text, ""));
        format!("{} {arguments}", path.rsplit('/').next().unwrap())
    };
    let mut ours: BTreeMap<String, String> = BTreeMap::new();
    for (key, value) in it["serviceConfig"].as_object().unwrap() {
        ours.insert(key.clone(), text(value));
    }
    let theirs = packaged
        .iter()
        .filter(|((section, _), _)| *section == "Service");
    let mut theirs: BTreeMap<String, String> = theirs
        .map(|((_, key), value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    for services in [&mut ours, &mut theirs] {
        for key in ["ExecStart", "ExecReload"] {
            let value = services.get_mut(key).unwrap();
            *value = program(value);
        }
    }
    assert_eq!(ours, theirs);
    assert_eq!(it["after"], json!([packaged[&("Unit", "After")]]));
    assert_eq!(it["wantedBy"], json!([packaged[&("Install", "WantedBy")]]));
    assert_eq!(
        text(&it["unitConfig"]["StartLimitIntervalSec"]),
        packaged[&("Unit", "StartLimitIntervalSec")]
    );
    // A changed check is read anew; a changed setting takes a new start.
    assert_eq!(it["reloadTriggers"].as_array().unwrap().len(), 1);
    assert!(text(&it["restartTriggers"][0]).contains("busy_threshold"));
}
