//! What the programs are configured by. Pure: text from addresses and folders.

use std::fmt::Write as _;
use std::path::Path;

/// A host that runs VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Host {
    /// As Slurm calls it, and as it calls itself.
    pub(crate) name: &'static str,
    /// Its end of the cable.
    pub(crate) address: &'static str,
    /// The controller's end of that cable.
    pub(crate) gateway: &'static str,
}

/// Both hosts. The addresses are in namespaces of their own, which have no way out.
pub(crate) const HOSTS: [Host; 2] = [
    Host {
        name: "a",
        address: "10.77.1.2",
        gateway: "10.77.1.1",
    },
    Host {
        name: "b",
        address: "10.77.2.2",
        gateway: "10.77.2.1",
    },
];

/// Where the engine's controller, Prometheus and the scaler are.
pub(crate) const CONTROLLER: &str = "control";

/// The pool of all VMs.
pub(crate) const POOL: &str = "web";

/// How the engine takes a node that is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    /// By `packaging/slurm/slurm.conf`.
    Recipe,
    /// By Slurm's defaults: a lost node is set down, and its jobs are begun again elsewhere. Only how
    /// long that takes is shortened, which is seven minutes.
    Defaults,
}

/// `slurm.conf`: how it is run on one machine without being installed there, and how it takes jobs that
/// are VMs.
pub(crate) fn slurm(folder: &Path, unpacked: &Path, engine: Engine, packaged: &str) -> String {
    let folder = folder.display();
    let plugins = unpacked.join("usr/lib/x86_64-linux-gnu/slurm-wlm");
    let plugins = plugins.display();
    let (expire, engine) = match engine {
        Engine::Recipe => ("", packaged.to_owned()),
        Engine::Defaults => (",cred_expire=5", "SlurmdTimeout=10\n".to_owned()),
    };
    let mut text = format!(
        "ClusterName=mvm
SlurmctldHost={CONTROLLER}({gateway})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket{expire}
CredType=cred/munge
PluginDir={plugins}
StateSaveLocation={folder}/slurmctld
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdSpoolDir={folder}/slurmd-%n
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
MailProg=/bin/true
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
{engine}",
        gateway = HOSTS[0].gateway,
    );
    for Host { name, address, .. } in HOSTS {
        let _ = writeln!(
            text,
            "NodeName={name} NodeAddr={address} NodeHostname={name} CPUs=8"
        );
    }
    // The one with the fewest takes the next.
    text += "PartitionName=vms Nodes=a,b Default=YES MaxTime=INFINITE LLN=YES\n";
    text
}

/// `cgroup.conf`: slurmd wants a version of cgroups, and is kept from this machine's own.
pub(crate) fn cgroup(folder: &Path) -> String {
    let folder = folder.display();
    format!("CgroupPlugin=cgroup/v1\nCgroupMountpoint={folder}/no-cgroups\n")
}

/// The rules as they are packaged, but for the minutes for which a Prometheus that starts has no number:
/// ten seconds, where a scrape is done each second.
pub(crate) fn rules(packaged: &str) -> String {
    packaged.replace("[5m:30s]", "[10s:1s]")
}

/// `prometheus.yml`: both hosts, those rules, and all of it each second.
pub(crate) fn prometheus(rules: &Path) -> String {
    let mut text = format!(
        "global:
  scrape_interval: 1s
  evaluation_interval: 1s
rule_files:
  - {rules}
scrape_configs:
  - job_name: mvm
    http_sd_configs:
",
        rules = rules.display(),
    );
    for Host { address, .. } in HOSTS {
        let _ = write!(
            text,
            "      - url: http://{address}:9152/sd\n        refresh_interval: 2s\n"
        );
    }
    text
}

/// Each host's policy: it keeps one at hand, and the engine makes it.
pub(crate) fn policy() -> String {
    format!("[[pool]]\nname = \"{POOL}\"\nspare = 1\nmax = 8\n")
}

/// What the VMs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guests {
    /// An agent as a plain process stands for each.
    Local,
    /// Real ones, by QEMU.
    Qemu,
}

/// What a VM is made of. Each host has its own `$MVM_HOME`, here on one machine.
pub(crate) fn pool(folder: &Path, agent: &Path, guests: Guests) -> String {
    let (folder, agent) = (folder.display(), agent.display());
    let vm = match guests {
        Guests::Local => format!("--backend local --agent {agent} --etc {folder}/etc"),
        Guests::Qemu => format!("--backend qemu --image {folder}/image --memory 128"),
    };
    format!("MVM_HOME={folder}/host-$(hostname)\nMVM_RUN=\"{vm} --label pool={POOL}\"\n")
}

/// The agents' settings: busy is what has a file that says so.
pub(crate) const AGENT: &str = "{\"busy_signals\": [\"inhibit\"], \"sample_interval_secs\": 1}\n";

/// Where the agent looks for that file: below its folder, or where a guest has it.
const FILE: &str = "folder=$(readlink /proc/$PPID/cwd)/run; [ -d $folder/busy.d ] || folder=/run/mvm; \
     mkdir -p $folder/busy.d; file=$folder/busy.d/work; ";

/// A probe by which a host has a guest work, or not.
pub(crate) fn work(works: bool) -> (&'static str, String) {
    let (name, command) = if works {
        ("work", "echo '{\"lease_secs\": 86400}' >$file")
    } else {
        ("rest", "rm -f $file")
    };
    let probe = serde_json::json!({
        "name": name,
        // It runs once when it is loaded, too, which nobody asked for. An agent's folder may be that of the
        // one before.
        "command": format!(
            "{FILE}ran=$folder/ran-{name}-$PPID; if [ -e $ran ]; then {command}; fi; >$ran"
        ),
        "interval_secs": 86_400,
    });
    (name, probe.to_string())
}

/// A health check by which each VM writes down by itself, every second, that it runs, and as which
/// process or boot.
pub(crate) fn heartbeat(folder: &Path, guests: Guests) -> String {
    let journal = folder.join("journal");
    let command = match guests {
        Guests::Local => format!(
            "echo \"$(date +%s.%N) $(basename \"$(readlink /proc/$PPID/cwd)\") $(hostname) $PPID\" >>{}",
            journal.display()
        ),
        // Its console is its job's output. Which VM it is and where is in that file's name.
        Guests::Qemu => {
            "echo \"beat $(date +%s) $(cat /proc/sys/kernel/random/boot_id)\" >/dev/console".into()
        }
    };
    let check = serde_json::json!({
        "name": "journal",
        "health_cmd": command,
        "health_interval_secs": 1,
    });
    check.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipe_is_what_is_packaged_and_the_defaults_are_without() {
        let slurm = |engine| slurm(Path::new("/f"), Path::new("/u"), engine, "JobRequeue=0\n");
        let recipe = slurm(Engine::Recipe);
        assert!(recipe.contains("\nJobRequeue=0\nNodeName=a NodeAddr=10.77.1.2"));
        assert!(recipe.contains("AuthInfo=socket=/f/munge/socket\n"));
        let defaults = slurm(Engine::Defaults);
        assert!(defaults.contains("SlurmdTimeout=10\nNodeName=a"));
        assert!(!defaults.contains("JobRequeue"));
    }

    #[test]
    fn a_prometheus_that_starts_need_not_watch_for_minutes() {
        let packaged = include_str!("../../../packaging/prometheus/mvm.rules.yml");
        assert!(!packaged.contains("[10s:1s]"));
        assert_eq!(rules(packaged).matches("[10s:1s]").count(), 1);
    }

    #[test]
    fn prometheus_asks_both_hosts_for_what_there_is() {
        let text = prometheus(Path::new("/r.yml"));
        assert!(text.contains("  - /r.yml\n"), "{text}");
        assert_eq!(text.matches(":9152/sd\n").count(), 2, "{text}");
    }
}
