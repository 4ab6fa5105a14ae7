# The guest of the stories: arguments of mkGuest. Nothing can be executed in it from outside, so what
# a story does to it are probes that are run on demand. The agent runs each probe once by itself, too,
# when it starts and after each wake: those that change something let that run pass. Which sleep was
# the last one stands in the agent's journal.
{ pkgs }:
let
  onDemand =
    name: command:
    ''
      sleep=$(sed -n 's/.*"last_sleep_ms":\([0-9]*\).*/\1/p' /run/mvm/journal.json 2>/dev/null)
      mark=/run/on-demand.${name}.$PPID.$sleep
      if [ -e "$mark" ]; then ${command}; else : >"$mark"; fi
    '';
  never = 86400;
  probe = command: {
    inherit command;
    intervalSecs = never;
  };

  # Whatever a shell or a quoting could trip over.
  text = "it's \"quoted\" $HOME \${HOME} `id` \\ \\n 100% ünï 🦀 'x'\n second line; # no comment";
in
{
  name = "story";
  hostname = "story.example";
  formats = [
    "initrd"
    "erofs"
    "ext4"
  ];
  users.web = {
    uid = 1000;
  };
  users.other = {
    uid = 1001;
    gid = 2000;
    home = "/srv/other";
  };

  services.web = {
    user = "web";
    preStart = ''
      echo "It works, says $(id -un)" >/var/lib/web/index.html
      printf %s "$TEXT" >/run/text-of-pre-start
    '';
    env = {
      TEXT = text;
      PORT = 8080;
    };
    command = ''
      echo "to stdout" >/dev/stdout
      echo "to stderr" >/dev/stderr
      printf %s "$TEXT" >"$HOME/text-of-env"
      printf %s '"it'"'"'s" `id` $HOME \ ünï 🦀' >"$HOME/text-of-command"
      exec httpd -f -p "127.0.0.1:$PORT" -h "$HOME"
    '';
  };
  # A derivation for a command, which takes of the store what the guest has elsewhere as well.
  services.tool.command = pkgs.writeShellScript "tool" ''
    greet
    while ${pkgs.pkgsStatic.busybox}/bin/busybox sleep 1; do :; done
  '';
  services.dies.command = "echo 'I cannot live'; exit 3";
  # Leaves two each time, the second in a session of its own, and says what it finds of them.
  services.leaves.command = ''
    echo "I find $(ps -o args | grep -c '^[s]leep 500')"
    sleep 5000 & setsid sleep 5001 &
  '';
  # Takes longer to end than init alone would wait.
  services.slow.command = ''
    setsid sh -c 'trap "echo so is mine; exit 0" TERM; while :; do sleep 0.2; done' &
    trap 'sleep 2; echo "all is written"; exit 0' TERM
    echo "I am up"
    while :; do sleep 0.2; done
  '';

  packages = [
    (pkgs.writeShellScriptBin "greet" "echo 'Good day'")
    # In place of busybox's.
    (pkgs.writeShellScriptBin "logger" "echo 'not busybox'")
    # Init has its own.
    (pkgs.writeShellScriptBin "poweroff" "exit 1")
  ];

  healthChecks.web = {
    # Quotes that have to survive; and without wget's -T, with which Debian's static busybox ends in
    # SIGSEGV.
    healthCmd = "wget -q -O - 'http://127.0.0.1:8080/' | grep -q \"It works\" && [ '$HOME' != \"$HOME\" ]";
    healthIntervalSecs = 0.5;
    healthTimeoutSecs = 5;
    startupGraceSecs = 60;
  };
  healthChecks.db = {
    checkpointCmd = "true";
    restoreCmd = pkgs.writeShellScriptBin "restore" "exit 0";
    critical = false;
    user = "web";
  };

  probes.text-of-env = probe "cat /var/lib/web/text-of-env";
  probes.text-of-command = probe "cat /var/lib/web/text-of-command";
  probes.text-of-pre-start = probe "cat /run/text-of-pre-start";
  probes.text-of-probe = probe "printf %s ${"'"}it'\\''s \"quoted\" $HOME `id` \\ ünï 🦀'";
  probes.as-user = probe "id -un" // {
    # More digits than Nix writes.
    intervalSecs = 86399.75;
    user = "other";
  };
  probes.by-number = probe "id -un" // {
    user = "1001";
  };
  probes.links = probe "for link in fd stdin stdout stderr; do readlink /dev/$link; done";
  probes.web-user = probe "ps -o user,args | grep '[h]ttpd -f'";
  probes.web-pid = probe "pidof httpd";
  probes.page = probe "wget -q -O - http://127.0.0.1:8080/";
  probes.folders = probe "stat -c '%U %G %a' /var/lib/web /srv/other /var/tmp";
  # By its path: Debian's busybox runs its own programs before those in PATH.
  probes.greet = probe "greet; /usr/bin/logger";
  probes.root-is-writable = probe "echo fine >/etc/test && cat /etc/test";
  probes.root = probe "awk '$2 == \"/\" { print $3 }' /proc/mounts | tail -1";
  probes.kill-web = probe (onDemand "kill-web" "killall httpd");
  probes.kill-agent = probe (onDemand "kill-agent" "kill -9 $PPID");

  agent = {
    busyThreshold = 0.5;
    busySignals = [
      "cpu"
      "inhibit"
    ];
    sampleIntervalSecs = 1;
  };
}
