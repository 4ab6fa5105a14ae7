use super::*;

fn run(args: &[&str]) -> Result<Config, String> {
    match read(Parser::from_args(args))? {
        Invocation::Run(config) => Ok(*config),
        other => panic!("{other:?}"),
    }
}

#[test]
fn defaults_are_those_of_the_documentation() {
    let config = run(&[]).unwrap();
    assert_eq!(config.listen, [ListenAddress::Vsock(52)]);
    assert_eq!((config.notify_port, config.busy_threshold), (None, 0.1));
    assert_eq!(config.busy_signals, [BusySignal::Loadavg]);
    assert_eq!(config.sample_interval, Duration::from_secs(5));
    assert_eq!(
        config.integrations_dir,
        Path::new("/etc/mvm/integrations.d")
    );
    assert_eq!(config.probes_dir, Path::new("/etc/mvm/probes.d"));
    assert_eq!(config.run_dir, Path::new("/run/mvm"));
    assert_eq!(
        (config.max_connections, config.max_concurrent_checks),
        (512, 32)
    );
    assert!(config.exec && config.system_effects && !config.allow_vsock);
    assert_eq!(config.freeze, FreezePolicy::default());
}

#[test]
fn a_flag_beats_the_file_and_the_file_the_default() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.json");
    let content = r#"{"busy_threshold":2,"run_dir":"/a","listen":["vsock:9"],"exec":false}"#;
    std::fs::write(&path, content).unwrap();
    let path = path.to_str().unwrap();
    let config = run(&[
        "--config",
        path,
        "--run-dir",
        "/b",
        "--listen",
        "unix:/x",
        "--listen=vsock:1",
        "--busy-signals",
        "cpu,inhibit",
        "--freeze=off",
        "--freeze-exempt",
        "/services/ssh/,x.slice",
        "--expose",
        "80,8080",
        "--no-system-effects",
    ])
    .unwrap();
    assert_eq!(
        config.listen,
        [ListenAddress::Unix("/x".into()), ListenAddress::Vsock(1)]
    );
    assert_eq!((config.busy_threshold, config.run_dir), (2.0, "/b".into()));
    assert_eq!(config.busy_signals, [BusySignal::Cpu, BusySignal::Inhibit]);
    assert!(!config.exec && !config.system_effects);
    let exempt = ["services/ssh", "x.slice"];
    assert_eq!(config.freeze.exempt, exempt);
    assert!(config.freeze.off);
    let exposed: Vec<u16> = config.expose.iter().map(|port| port.get()).collect();
    assert_eq!(exposed, [80, 8080]);
}

#[test]
fn errors_name_the_setting() {
    for (args, message) in [
        (vec!["--lissen", "x"], "no flag --lissen"),
        (vec!["--listen", "tcp:80"], "--listen: `tcp:80` is neither"),
        (
            vec!["--listen", "vsock:4294967295"],
            "--listen: `vsock:4294967295` is neither vsock:PORT, up to 4294967294, nor",
        ),
        (
            vec!["--busy-threshold", "lots"],
            "--busy-threshold: invalid type",
        ),
        (
            vec!["--busy-threshold", "0"],
            "--busy-threshold: 0 is not over 0",
        ),
        (
            vec!["--busy-signals", "cpu,moon"],
            "--busy-signals: unknown variant `moon`",
        ),
        (vec!["--max-connections", "0"], "--max-connections"),
        (
            vec!["--freeze", "all"],
            "--freeze: unknown variant `all`, expected `workload` or `off`",
        ),
        (
            vec!["--freeze-exempt", "/a,/../b"],
            "--freeze-exempt: `/../b` is no path of a cgroup",
        ),
        (
            vec!["--freeze-exempt", "/"],
            "--freeze-exempt: `/` is no path of a cgroup",
        ),
        (
            vec!["--sample-interval-secs", "0.049"],
            "--sample-interval-secs: 0.049 is below 0.05 seconds",
        ),
        (
            vec!["--sample-interval-secs", "0"],
            "--sample-interval-secs: 0 is not over 0",
        ),
        (
            vec!["--config", "/nonexistent"],
            "/nonexistent: No such file",
        ),
        (
            vec!["--expose", "web"],
            "--expose: invalid type: string \"web\"",
        ),
        (vec!["--expose", "0"], "--expose: "),
        (vec!["stray"], "stray"),
        (vec!["--run-dir"], "--run-dir"),
        (vec!["--run-dir", ""], "--run-dir: an empty path"),
        (vec!["--listen", ""], "--listen: no address is named"),
        (vec!["--listen", ","], "--listen: no address is named"),
    ] {
        let error = run(&args).unwrap_err();
        assert!(error.contains(message), "{args:?}: {error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.json");
    std::fs::write(&path, "{\n\"lissen\": []}").unwrap();
    let error = run(&["--config", path.to_str().unwrap()]).unwrap_err();
    assert!(
        error.contains("agent.json:2: unknown field `lissen`"),
        "{error}"
    );
}

#[test]
fn every_flag_is_a_field_and_every_field_a_flag() {
    for (flag, _) in FLAGS {
        assert!(USAGE.contains(&format!("--{flag} ")), "{flag}");
        let unknown = format!("{{\"{}\":{{}}}}", flag.replace('-', "_"));
        let problem = given(unknown.as_bytes()).unwrap_err();
        assert!(!problem.message.contains("unknown field"), "{problem:?}");
    }
    let problem = given(b"{\"x\":1}").unwrap_err();
    assert_eq!(
        problem.message.matches('`').count() / 2 - 1,
        FLAGS.len(),
        "{problem:?}"
    );
}

#[test]
fn what_would_start_and_serve_nobody_is_no_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.json");
    for (content, told) in [
        (
            "{\"listen\": []}",
            "agent.json:1: field `listen`: no address is named",
        ),
        (
            "{\n\"run_dir\": \"\"}",
            "agent.json:2: field `run_dir`: an empty path",
        ),
        ("{\"integrations_dir\": \"\"}", "an empty path"),
        ("{\"probes_dir\": \"\"}", "an empty path"),
    ] {
        std::fs::write(&path, content).unwrap();
        let problem = problem_in(&path).unwrap();
        assert!(problem.contains(told), "{problem}");
    }
}
