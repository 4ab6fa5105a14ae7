# Every argument of mkGuest that is a set of fields: what it takes, and what it is without being
# given. One table for the checks, the renderer, the NixOS options and the documentation; a test
# compares its drop-in part with what the agent itself takes and defaults to.
#
# A field's `type` is one of types.nix. A field without `default` is required.
let
  field = type: default: what: { inherit type default what; };
  required = type: what: { inherit type what; };
in
{
  # /etc/mvm/integrations.d/NAME.json
  healthCheck = {
    healthCmd = field "commandOrNull" null "run by `/bin/sh -c`; exit 0 is healthy";
    healthArgv = field "argvOrNull" null "in place of `healthCmd`: run without a shell";
    healthIntervalSecs = field "secs" 30 "from start to start";
    healthTimeoutSecs = field "secs" 10 "then the check and all that it started is killed, and has failed";
    startupGraceSecs = field "grace" 0 "failures until then leave it `starting`";
    failureThreshold = field "count" 1 "failures in a row that make it `unhealthy`";
    successThreshold = field "count" 1 "successes in a row that make it `healthy`";
    checkpointCmd = field "commandOrNull" null "run before a snapshot";
    checkpointArgv = field "argvOrNull" null "in place of `checkpointCmd`: run without a shell";
    personalizeCmd = field "commandOrNull" null "run in a restored guest before its work goes on";
    personalizeArgv = field "argvOrNull" null "in place of `personalizeCmd`: run without a shell";
    restoreCmd = field "commandOrNull" null "run after a snapshot";
    restoreArgv = field "argvOrNull" null "in place of `restoreCmd`: run without a shell";
    checkpointTimeoutSecs = field "secs" 30 "how long the checkpoint command may take";
    personalizeTimeoutSecs = field "secs" 30 "how long the personalize command may take";
    restoreTimeoutSecs = field "secs" 30 "how long the restore command may take";
    critical = field "bool" true "whether a failed checkpoint fails the sleep, and a failed personalize command keeps the guest frozen";
    user = field "userOrNull" null "whom its commands run as; root without one";
  };

  # /etc/mvm/probes.d/NAME.json
  probe = {
    command = field "commandOrNull" null "run by `/bin/sh -c`";
    commandArgv = field "argvOrNull" null "in place of `command`: run without a shell. One of the two is required";
    intervalSecs = field "secs" 30 "from start to start";
    timeoutSecs = field "secs" 10 "then the probe and all that it started is killed, and has failed";
    output = field "output" "text" "`json`: what it prints is one JSON value";
    user = field "userOrNull" null "whom it runs as; root without one";
  };

  # /etc/mvm/agent.json, but for the folders, which are where the image has them.
  agent = {
    port = field "port" 52 "the vsock port that it listens on";
    notifyPort = field "portOrNull" null "a vsock port of the host to tell once that it listens";
    busyThreshold = field "positive" 0.1 "load average, or share, from which the guest is busy";
    busySignals = field "signals" [ "loadavg" ] "what makes the guest busy";
    sampleIntervalSecs = field "secs" 5 "how often the signals are read";
    maxConnections = field "count" 512 "further ones are refused";
    maxConcurrentChecks = field "count" 32 "further ones wait their turn";
    freeze = field "freeze" "workload" "`off`: nothing stands still while the guest sleeps";
    freezeExempt = field "cgroups" [ ] "cgroups that do not stand still, by their paths from the root";
    expose = field "ports" [ ] "TCP ports on the guest's loopback that hosts reach";
    allowVsock = field "bool" false "true: what the agent starts may open `AF_VSOCK` sockets";
    exec = field "bool" true "false switches a dev build's exec, put and get off";
  };

  service = {
    command = required "command" "run by `/bin/sh -c`, and again whenever it ends";
    user = field "user" "root" "whom it runs as";
    env = field "env" { } "its environment";
    preStart = field "script" "" "run before it each time, as root";
  };

  user = {
    uid = required "uid" "the number; no other user's";
    gid = field "gidOrNull" null "the number of the user's group, which has the user's name; the uid without one";
    home = field "folderOrNull" null "a folder of the user's own, made at boot; /var/lib/NAME without one";
  };

  guest = {
    name = required "hostname" "the guest's";
    services = field "set" { } "programs that init keeps running: see below";
    healthChecks = field "set" { } "what the host asks of a service: see below";
    probes = field "set" { } "figures that the host wants to see: see below";
    users = field "set" { } "users besides `root` and `nobody`: see below";
    packages = field "packages" [ ] "their programs are in the guest's `PATH`";
    hostname = field "hostnameOrNull" null "the guest's; its name without one";
    agent = field "set" { } "the agent's settings: see below";
    dev = field "bool" false "the build of the agent that serves exec, put and get";
    kernel = field "kernelOrNull" null "a kernel with its modules; nixpkgs' `linux` without one";
    kernelModules = field "modules" [ ] "loaded besides those for vsock, with what they depend on";
    networkPayload = field "bool" false "a restored guest takes its network from its payload: see [snapshots.md](snapshots.md#network)";
    formats = field "formats" [ "initrd" ] "the guest in each of these; `manifest.json` names the first";
  };
}
