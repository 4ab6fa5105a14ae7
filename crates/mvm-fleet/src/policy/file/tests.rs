use super::*;
use std::path::Path;

fn refused(text: &str) -> String {
    Policy::parse(text, "fleet.toml").unwrap_err().to_string()
}

#[test]
fn everything_that_a_pool_can_say() {
    let text = r#"
        [[pool]]
        name = "web"
        idle_pause_after = "30s"
        idle_sleep_after = "5m"
        asleep_remove_after = "7d"
        max_lifetime = "1h30m"
        min = 1
        max = 20
        spare = 2
        golden = "/snapshots/web"
        payload = "/etc/mvm/web.json"
        wake = [
          { listen = "127.0.0.1:8080", guest_port = 8080 },
          { listen = "[::1]:8081", vsock_port = 99 },
        ]

        [[pool]]
        name = "db"
    "#;
    let policy = Policy::parse(text, "fleet.toml").unwrap();
    let web = policy.pool("web").unwrap();
    let expected = PoolPolicy {
        idle_pause_after: Some(Duration::from_secs(30)),
        idle_sleep_after: Some(Duration::from_secs(300)),
        asleep_remove_after: Some(Duration::from_secs(7 * 86_400)),
        max_lifetime: Some(Duration::from_secs(5400)),
        bounds: Bounds {
            min: 1,
            max: 20,
            spare: 2,
        },
        golden: Some(Path::new("/snapshots/web").into()),
        payload: Some(Path::new("/etc/mvm/web.json").into()),
        wake: vec![
            WakeListener {
                listen: "127.0.0.1:8080".parse().unwrap(),
                port: Port::Tcp(8080),
            },
            WakeListener {
                listen: "[::1]:8081".parse().unwrap(),
                port: Port::Vsock(99),
            },
        ],
    };
    assert_eq!(web, &expected);
    let names: Vec<_> = policy.pools().map(|(name, _)| name).collect();
    assert_eq!(names, ["db", "web"]);
    assert_eq!(policy.bounds("db"), Bounds::default());
    assert_eq!(policy.bounds("nobody's"), Bounds::default());
    assert_eq!(policy.heartbeat(), Duration::from_millis(7500));
    assert_eq!(Policy::default().heartbeat(), Duration::from_secs(15));
    assert_eq!(Policy::parse("", "f"), Ok(Policy::default()));
}

#[test]
fn a_mistake_is_named_with_file_line_pool_and_field() {
    let pool = |rest: &str| refused(&format!("[[pool]]\nname = \"web\"\n{rest}\n"));
    for (error, expected) in [
        (
            pool("idle_slep_after = \"5m\""),
            "fleet.toml:3: pool `web`: `idle_slep_after`: there is no such key; `idle_sleep_after` is the nearest",
        ),
        (
            pool("colour = 1"),
            "fleet.toml:3: pool `web`: `colour`: there is no such key; there are name, idle_pause_after, \
             idle_sleep_after, asleep_remove_after, max_lifetime, min, max, spare, golden, payload, wake",
        ),
        (
            pool("idle_sleep_after = \"soon\""),
            "fleet.toml:3: pool `web`: `idle_sleep_after`: `soon` is no duration over zero, such as \"30s\", \
             \"5m\" or \"7d\"; ten years at most",
        ),
        (
            pool("min = 3\nmax = 2"),
            "fleet.toml:3: pool `web`: `min`: 3 are over `max`, which is 2",
        ),
        (
            pool("spare = 3\nmax = 2"),
            "fleet.toml:3: pool `web`: `spare`: 3 are over `max`, which is 2",
        ),
        (
            pool("max = 0"),
            "fleet.toml:3: pool `web`: `max`: a pool of which none may be up: leave the pool out, or say 1 or more",
        ),
        (
            pool("idle_sleep_after = \"30s\"\nidle_pause_after = \"5m\""),
            "fleet.toml:4: pool `web`: `idle_pause_after`: is not before `idle_sleep_after`: a VM would be \
             asleep before it is paused; leave one of the two out, or make this one shorter",
        ),
        (
            pool("golden = \"/s\""),
            "fleet.toml:3: pool `web`: `golden`: a pool that makes clones needs a `max`",
        ),
        (
            pool("max = 1\ngolden = \"s\""),
            "fleet.toml:4: pool `web`: `golden`: is relative, and nobody knows to what: write it from / on",
        ),
        (
            pool("payload = \"/p\""),
            "fleet.toml:3: pool `web`: `payload`: is handed to clones, and without `golden` none are made",
        ),
        (
            pool("wake = [{ listen = \"127.0.0.1:80\", guest_port = 80, vsock_port = 1 }]"),
            "fleet.toml:3: pool `web`: `vsock_port`: stands beside `guest_port`: a connection is joined to one port",
        ),
        (
            pool("wake = [{ listen = \"127.0.0.1:80\" }]"),
            "fleet.toml:3: pool `web`: `listen`: has no `guest_port` (TCP on the guest's loopback) and no \
             `vsock_port`: where in the guest does a connection go?",
        ),
        (
            pool("wake = [{ listen = \"127.0.0.1:80\", guest_prt = 80 }]"),
            "fleet.toml:3: pool `web`: `guest_prt`: there is no such key; `guest_port` is the nearest",
        ),
        (
            refused("[[pol]]\nname = \"web\""),
            "fleet.toml:1: `pol`: there is no such key; `pool` is the nearest",
        ),
        (
            refused("[[pool]]\nname = \"web\"\n[[pool]]\n\nname = \"web\""),
            "fleet.toml:5: pool `web`: `name`: there is a pool of this name already; a pool is written once",
        ),
        (
            refused("[[pool]]\nname = \"we b\""),
            "fleet.toml:2: pool `we b`: `name`: a pool's name is of A-Z a-z 0-9 . _ - and has 1 to 54 of them",
        ),
    ] {
        assert_eq!(error, expected);
    }
}

#[test]
fn what_serde_and_toml_say_has_its_place() {
    for (text, expected) in [
        (
            "[[pool]]\nname = \"web\"\nmin = -1",
            "fleet.toml:3: pool `web`: `min`: ",
        ),
        (
            "[[pool]]\nname = \"web\"\nmin = \"1\"",
            "fleet.toml:3: pool `web`: `min`: ",
        ),
        (
            "[[pool]]\nname = \"web\"\nidle_sleep_after = 30",
            "fleet.toml:3: pool `web`: `idle_sleep_after`: ",
        ),
        (
            "[[pool]]\nname = \"web\"\nwake = [{ listen = \"here\", guest_port = 1 }]",
            "fleet.toml:3: pool `web`: `listen`: ",
        ),
        (
            "[[pool]]\nname = \"web\"\nwake = [{ listen = \"127.0.0.1:1\", guest_port = 70000 }]",
            "fleet.toml:3: pool `web`: `guest_port`: ",
        ),
        ("[[pool]]\nmin = 1", "fleet.toml:1: missing field `name`"),
        ("pool = 7", "fleet.toml:1: "),
        ("[pool]\nname = \"web\"", "fleet.toml:1: "),
        ("[[pool]]\nname = \"web\"\nname = \"db\"", "fleet.toml:3: "),
        ("[[pool]]\nname = ", "fleet.toml:2: "),
    ] {
        let error = refused(text);
        assert!(error.starts_with(expected), "{text:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn all_that_is_wrong_is_said_at_once_in_the_order_of_lines() {
    let error = refused(
        "[[pool]]\nname = \"web\"\nmin = 9\nmax = 3\nspare = 5\n[[pool]]\nname = \"db\"\ngolden = \"x\"\n",
    );
    let lines: Vec<_> = error.lines().map(|line| line.split(": ").next()).collect();
    assert_eq!(
        lines,
        [
            Some("fleet.toml:3"),
            Some("fleet.toml:5"),
            Some("fleet.toml:8"),
            Some("fleet.toml:8")
        ]
    );
}

#[test]
fn durations() {
    for (text, secs) in [
        ("1s", 1),
        ("90s", 90),
        ("5m", 300),
        ("8h", 28_800),
        ("7d", 604_800),
        ("1d12h", 129_600),
    ] {
        let text = format!("[[pool]]\nname = \"w\"\nmax_lifetime = \"{text}\"");
        let policy = Policy::parse(&text, "f").unwrap();
        assert_eq!(
            policy.pool("w").unwrap().max_lifetime,
            Some(Duration::from_secs(secs)),
            "{text}"
        );
    }
    for bad in [
        "",
        "0s",
        "-1s",
        "5",
        "s",
        "1y",
        "4000d",
        "99999999999999999999d",
        "5 fortnights",
    ] {
        let text = format!("[[pool]]\nname = \"w\"\nmax_lifetime = \"{bad}\"");
        assert!(Policy::parse(&text, "f").is_err(), "{bad}");
    }
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "(\\[\\[pool\\]\\]|name|=|\"[a-z]{0,3}\"|\n|[0-9]|min|wake|[\\[\\]{},.]| ){0,40}") {
        if let Err(error) = Policy::parse(&text, "f") {
            proptest::prop_assert!(!error.problems.is_empty());
        }
    }
}
