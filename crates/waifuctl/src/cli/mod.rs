//! The command line: all clap definitions, without logic. Each command is implemented in its own file in `commands/`.

mod capacity;
mod common;
mod contexts;
mod create;
mod dns;
mod duration;
mod events;
mod fabric;
mod firewall;
mod global;
mod guest;
mod instances;
mod join_tokens;
mod list;
mod networks;
mod nics;
mod nodes;
mod pools;
mod ports;
mod program;
mod streams;
mod templates;
mod tokens;

pub use capacity::CapacityArgs;
pub use common::{InstanceArg, LabelChanges, SelectArgs, WaitOptions};
pub use contexts::{ContextCommand, LoginArgs};
pub use create::{CreateArgs, SpecArgs};
pub use dns::{DnsCommand, DnsShowArgs, ResolverChoice};
pub use duration::{parse_duration, parse_exec_timeout, parse_seconds};
pub use events::EventsArgs;
pub use fabric::{FabricClientCommand, FabricCommand};
pub use firewall::{FirewallCommand, FirewallRemoveArgs, FirewallRuleArgs};
pub use global::GlobalArgs;
pub use guest::{ExecArgs, PasswdArgs};
pub use instances::{
    AdoptArgs, DeleteArgs, EditArgs, LabelArgs, MoveArgs, ProtectArgs, RecreateArgs, RescueArgs,
    ResizeArgs, StartArgs, StopArgs, WaitArgs, WaitFor,
};
pub use join_tokens::{CreateTokenArgs, JoinTokenCommand};
pub use list::{ListArgs, ListFormat, ShowArgs, ShowFormat};
pub use networks::{NetworkAddArgs, NetworkCommand};
pub use nics::{NicAddArgs, NicCommand, NicRemoveArgs};
pub use nodes::{
    ConfirmArgs, NodeAddArgs, NodeCommand, NodeDrainArgs, NodeLabelArgs, NodePurgeArgs,
    NodeRemoveArgs, NodeRenameArgs, NodesArg,
};
pub use pools::{ImageCommand, PoolCommand};
pub use ports::{PublishArgs, UnpublishArgs};
pub use program::{CompletionsArgs, ReferenceCommand, SchemaArgs, SchemaOf, VersionArgs};
pub use streams::{ConsoleArgs, ForwardArgs, LogsArgs, ScreenArgs, SshArgs, SshConfigArgs};
pub use templates::{TemplateAddArgs, TemplateCommand, TemplateDeleteArgs, TemplateRefreshArgs};
pub use tokens::TokenCommand;

use clap::{Parser, Subcommand};

/// Manage virtual machines on your own machines.
#[derive(Debug, Parser)]
#[command(
    name = "waifuctl",
    version,
    about,
    max_term_width = 100,
    arg_required_else_help = true
)]
#[command(
    after_help = "Exit codes: 0 success; 1 invalid input, state or permission; 2 internal error, or waifud is unreachable; \
3 the deadline of --wait passed and waifud continues in the background.\n\n\
waifuctl uses the first of these that is set: --context; --socket or WAIFUD_SOCKET; WAIFUD_URL with WAIFUD_CA (a file) \
and WAIFUD_TOKEN; the current context; the socket of waifud on this machine."
)]
pub struct Cli {
    #[command(flatten)]
    pub global: GlobalArgs,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create an instance from a template
    #[command(
        visible_alias = "launch",
        after_help = "Examples:\n  waifuctl create web -t debian-12 --user-data web.yaml --wait\n  waifuctl create -t debian-12 --cpus 2 --memory 4G --disk 40G\n  waifuctl create ha -t debian-12 --network lan --network default\n  waifuctl create -f web.yaml --wait\n\n\
A file can contain several descriptions, separated by ---. Options override the fields of a file with one description. \
Running the same command again creates only the instances that do not exist yet. `waifuctl schema instance` prints the \
fields. Without a name, a name is generated. Sizes need a unit; 2G means 2 GiB."
    )]
    Create(Box<CreateArgs>),
    /// List instances
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  waifuctl list --state running\n  waifuctl list web db -o wide\n  waifuctl list -l tier=web,!temporary -o name\n  waifuctl list --sort -mem --no-headers\n  waifuctl list -o columns=name,state,MAC:.spec.nics[0].mac\n  waifuctl list --watch"
    )]
    List(ListArgs),
    /// Show instances in full
    #[command(
        after_help = "Example:\n  waifuctl show web --json | jq .status.state\n  waifuctl show web -o yaml > web.yaml"
    )]
    Show(ShowArgs),
    /// Destroy instances and their disks
    #[command(
        visible_alias = "rm",
        after_help = "Examples:\n  waifuctl delete web\n  waifuctl delete web db --yes --wait\n  waifuctl delete web --yes --ignore-missing\n  waifuctl delete -l tier=test --yes"
    )]
    Delete(DeleteArgs),
    /// Adopt instances that exist on a node but not in waifud's database, for example after a restored backup
    #[command(
        after_help = "Examples:\n  waifuctl adopt web\n  waifuctl adopt web --node alder --name web-2\n\n\
The guests keep running without interruption. `waifuctl node show NODE` lists unmanaged instances."
    )]
    Adopt(AdoptArgs),
    /// Create an instance again, with new disks, whose node was removed with --force
    #[command(
        after_help = "Examples:\n  waifuctl recreate web --wait\n  waifuctl recreate web --node birch --yes\n\n\
The instance keeps its name, MAC addresses, user-data, settings and addresses. With the fabric none, it gets another address on \
the default network, since each node has its own range there. Its disks are new and empty: restore your data from a \
backup. If the old machine comes back with its disks, its copy is shut down and kept; see `waifuctl node show`."
    )]
    Recreate(RecreateArgs),
    /// Move an instance to another node, with its disks; the guest is off meanwhile
    #[command(
        name = "move",
        after_help = "Examples:\n  waifuctl move web --to birch --wait\n  waifuctl move web --wait\n  waifuctl move web --cancel\n\n\
The new node first gets the image, while the guest still runs. Then the guest is shut down, its disks are copied and verified, \
and the new node starts it. The old node deletes its disks when the instance has started on the new one. The instance keeps its \
addresses. With the fabric none, it gets another one on the network default; waifuctl asks first."
    )]
    Move(MoveArgs),
    /// Start instances, including those whose guest powered itself off
    #[command(
        after_help = "Examples:\n  waifuctl start web\n  waifuctl start web db --wait\n  waifuctl start -l tier=web\n  waifuctl start --all\n\n\
--wait ends when cloud-init has finished in the guest. If waifud cannot know that at each boot (see `waifuctl show`), it \
ends when the VM runs."
    )]
    Start(StartArgs),
    /// Shut instances down; a guest that does not react within 90 seconds is powered off
    #[command(
        after_help = "Examples:\n  waifuctl stop web db --wait\n  waifuctl stop web --force\n  waifuctl stop --all --wait"
    )]
    Stop(StopArgs),
    /// Shut instances down and start them again; pending changes take effect
    #[command(
        after_help = "Examples:\n  waifuctl reboot web --wait\n  waifuctl reboot web --force\n\n\
--wait ends when the instance is ready again, or when the VM runs if waifud cannot know that at each boot. cloud-init \
runs many modules only once per instance (write_files, runcmd, packages and others). To run them again after a change \
of user-data, use waifuctl edit --re-run."
    )]
    Reboot(StopArgs),
    /// Change CPUs, memory or the disk of an instance
    #[command(
        after_help = "Examples:\n  waifuctl resize web --disk 40G\n  waifuctl resize web --cpus 4 --memory 8G --restart\n\n\
A disk grows immediately and cannot shrink; cloud-init's growpart grows the filesystem in the guest at the next boot. \
CPUs and memory take effect at the next start; until then, `waifuctl show` lists them as pending."
    )]
    Resize(ResizeArgs),
    /// Boot a rescue system with the disks of an instance attached, to repair them
    #[command(
        after_help = "Examples:\n  waifuctl rescue web --force --wait\n  waifuctl ssh web -- mount /dev/vdb1 /mnt\n  waifuctl rescue web --end --wait\n\n\
The instance keeps its address, nics and SSH keys. Its user-data is not applied to the rescue system. Changes on the \
rescue system's own disk are discarded at the end."
    )]
    Rescue(RescueArgs),
    /// Protect an instance against deletion; --off removes the protection
    #[command(after_help = "Examples:\n  waifuctl protect web\n  waifuctl protect web --off")]
    Protect(ProtectArgs),
    /// Edit the user-data or the description of an instance
    #[command(
        after_help = "Examples:\n  waifuctl edit web\n  waifuctl edit web --user-data web.yaml --re-run\n  waifuctl edit web --spec\n\n\
The editor is $VISUAL or $EDITOR, otherwise vi. Without a terminal, editors such as vi and nano are not started: use \
--user-data, or an editor that needs no terminal.\n\n\
The guest reads new user-data at its next start, but cloud-init runs write_files, runcmd, packages and most other \
modules only once per instance. With --re-run, cloud-init treats the next boot as the first boot: it runs all modules \
again and generates new host keys."
    )]
    Edit(EditArgs),
    /// Wait until instances reach a given state
    #[command(
        after_help = "Examples:\n  waifuctl wait web --for ready\n  waifuctl wait web db --for stopped --timeout 2m\n\n\
The exit code is 3 if the timeout passes. Ctrl-C ends the wait (exit code 130); waifud continues in the background."
    )]
    Wait(WaitArgs),
    /// Set or remove labels of an instance
    #[command(
        after_help = "Examples:\n  waifuctl label web tier=front owner=ana\n  waifuctl label web owner-\n\n\
KEY=VALUE sets a label, KEY- removes it; other labels are unchanged."
    )]
    Label(LabelArgs),
    /// Publish a node port to an instance
    #[command(
        after_help = "Examples:\n  waifuctl publish web 80\n  waifuctl publish web 8080:80\n  waifuctl publish dns 53/udp\n\n\
The port is published at all addresses of the node except loopback. The guest sees the clients' own addresses."
    )]
    Publish(PublishArgs),
    /// Stop publishing a port of an instance
    #[command(
        after_help = "Examples:\n  waifuctl unpublish web 8080\n  waifuctl unpublish dns 53/udp"
    )]
    Unpublish(UnpublishArgs),
    /// Allow and deny connections to and from an instance
    #[command(subcommand)]
    Firewall(FirewallCommand),
    /// Print the address of an instance
    #[command(after_help = "Example:\n  ping $(waifuctl ip web)")]
    Ip(InstanceArg),
    /// Connect to the serial console of an instance; Ctrl-] disconnects
    #[command(
        after_help = "Examples:\n  waifuctl console web\n  waifuctl console web --raw\n\n\
Only escape sequences for colors and cursor movement are passed to the terminal: titles, clipboard access, mouse \
reports and terminal queries are dropped. --raw passes everything; use it only for guests that you trust. A console has \
one user at a time; a new connection replaces the previous one.\n\n\
If standard input is not a terminal, its bytes are sent to the console, and the output is shown after its end too, until \
the console closes or waifuctl is interrupted. To follow the output in a script, without taking the console from its \
user, use waifuctl logs --follow."
    )]
    Console(ConsoleArgs),
    /// Run a program in an instance through its guest agent, and exit with the program's exit code
    #[command(
        after_help = "Examples:\n  waifuctl exec web -- systemctl is-system-running\n  waifuctl exec web -- sh -c 'df -h; exit 3'\n  waifuctl exec web --timeout 10m -- apt-get -y upgrade\n  waifuctl exec web -- sh < setup.sh\n\n\
The program runs as root. A file or a pipe on standard input becomes its input, at most 1 MiB; use --no-stdin in a loop \
that reads from standard input itself. The output is printed when the program has ended: the first 2 MiB of standard \
output and 512 KiB of standard error, unfiltered. A guest that you do not trust can put escape sequences into it. A \
program that exceeds the timeout keeps running.\n\n\
Exit codes: the program's own; 128 plus the signal number if a signal ended it; 127 if the guest does not have the \
program; 126 if it cannot be executed; 255 if waifuctl could not run it or its result is unknown. Requires \
qemu-guest-agent and /bin/sh in the guest."
    )]
    Exec(ExecArgs),
    /// Set the password of a user in an instance through its guest agent
    #[command(
        after_help = "Examples:\n  waifuctl passwd web\n  waifuctl passwd web --user debian --password-file -\n\n\
Without --password-file, you are prompted for the password. waifud does not store it. The password works on the console; \
over SSH it works only if the guest's sshd allows passwords."
    )]
    Passwd(PasswdArgs),
    /// Print the console output of an instance
    #[command(
        after_help = "Examples:\n  waifuctl logs web --lines 50\n  waifuctl logs web --follow\n  waifuctl logs web --cloud-init\n\n\
Escape sequences of the guest are printed as text, colors are removed; --raw passes all bytes. With --json, each line \
is a JSON object."
    )]
    Logs(LogsArgs),
    /// Log in to an instance or run a command there with the system's ssh
    #[command(
        after_help = "Examples:\n  waifuctl ssh web\n  waifuctl ssh root@web -- systemctl status nginx\n  waifuctl ssh web -t -- htop\n  waifuctl ssh -A -L 8080:localhost:80 web\n\n\
Options of ssh come before --; everything after it is passed to the program. The connection goes through waifud and the \
node, so the guest does not need an address that you can reach. Host keys are verified against those that the guest \
prints on its console. The exit code is that of the command; 255 means that ssh itself failed."
    )]
    Ssh(SshArgs),
    /// Print a configuration file for ssh, scp, rsync and editors
    #[command(
        after_help = "Examples:\n  waifuctl ssh-config > ~/.ssh/waifud\n  ssh -F ~/.ssh/waifud web\n  scp -F ~/.ssh/waifud notes.txt web:"
    )]
    SshConfig(SshConfigArgs),
    /// Forward local ports to an instance until Ctrl-C
    #[command(
        after_help = "Examples:\n  waifuctl forward web 8080:80\n  waifuctl forward db 5432 0:9187\n\n\
Ports are opened on 127.0.0.1 only. To open a port to other machines, see waifuctl publish."
    )]
    Forward(ForwardArgs),
    /// Make the screen of an instance available to local viewers until Ctrl-C
    #[command(
        after_help = "Examples:\n  waifuctl screen web --viewer\n  waifuctl screen web --port 5901\n\n\
The screen is served as VNC (RFB) on 127.0.0.1 without a password: all users of this machine can connect to it."
    )]
    Screen(ScreenArgs),
    /// Connect standard input and output to the SSH port of an instance; used by ssh as `ProxyCommand`
    #[command(hide = true)]
    SshProxy(InstanceArg),
    /// Show events, oldest first
    #[command(after_help = "Examples:\n  waifuctl events web\n  waifuctl events --follow --json")]
    Events(EventsArgs),
    /// Explain the state of an instance and suggest what to do next
    #[command(after_help = "Example:\n  waifuctl why web")]
    Why(InstanceArg),
    /// Manage templates, which instances are created from
    #[command(subcommand)]
    Template(TemplateCommand),
    /// Manage images, the files that templates refer to
    #[command(subcommand)]
    Image(ImageCommand),
    /// Show storage pools, which hold the disks on a node
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Show the space used in pools and in the image store
    #[command(after_help = "Example:\n  waifuctl df --json | jq .images_bytes")]
    Df,
    /// Show how many more instances of a size fit, and whether the nodes could lose some of them
    #[command(
        after_help = "Examples:\n  waifuctl capacity --memory 4G --cpus 2\n  waifuctl capacity --survive 1\n  waifuctl capacity --survive 1 --json | jq -e .survival.fits\n\n\
Memory, CPUs, the pool and free addresses of each node are considered as when an instance is placed. With --survive, the \
instances that run on the largest reachable nodes are distributed over the others, and those that do not fit are named."
    )]
    Capacity(CapacityArgs),
    /// Check the whole installation and suggest repairs; fails if a check fails
    #[command(after_help = "Example:\n  waifuctl doctor")]
    Doctor,
    /// Show or choose what connects the guests of different nodes
    #[command(subcommand)]
    Fabric(FabricCommand),
    /// Resolve the names of instances from machines that are not guests
    #[command(subcommand)]
    Dns(DnsCommand),
    /// Manage networks: `default`, and bridges of the nodes
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Manage the nics of instances
    #[command(subcommand)]
    Nic(NicCommand),
    /// Manage nodes, the machines that run instances
    #[command(subcommand)]
    Node(NodeCommand),
    /// Print the JSON Schema of a file format
    #[command(after_help = "Example:\n  waifuctl schema instance > instance.schema.json")]
    Schema(SchemaArgs),
    /// Show the versions of waifuctl and of waifud
    #[command(after_help = "Example:\n  waifuctl version --json | jq -r .server.version")]
    Version(VersionArgs),
    /// Print shell completions
    #[command(
        after_help = "Names of instances, nodes, templates and networks are completed by asking waifud.\n\nExample:\n  waifuctl completions bash > /etc/bash_completion.d/waifuctl"
    )]
    Completions(CompletionsArgs),
    /// Manage tokens, which give access to this waifud from other machines
    #[command(subcommand)]
    Token(TokenCommand),
    /// Create a context for a waifud on another machine, with a token created there
    #[command(
        after_help = "Examples:\n  waifuctl login https://waifud.lan:7373\n  waifuctl login waifud.lan --fingerprint 3f9c… --token-file token --name home\n\n\
waifud's CA is verified by its fingerprint, by its file, or by you. The token is stored in \
~/.config/waifud/contexts.toml, which only you can read."
    )]
    Login(LoginArgs),
    /// Manage contexts, which select the waifud to use
    #[command(subcommand)]
    Context(ContextCommand),
    /// Write the reference of waifuctl for packages and docs
    #[command(subcommand, hide = true)]
    Reference(ReferenceCommand),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    /// Calls `look` with a command and with all that it contains.
    fn each(command: &clap::Command, look: &mut dyn FnMut(&clap::Command)) {
        look(command);
        for inner in command.get_subcommands() {
            each(inner, look);
        }
    }

    /// clap wraps paragraphs: lines that are broken by hand become ragged.
    #[test]
    fn paragraphs_of_the_help_are_not_broken_by_hand() {
        let (mut paragraphs, mut broken) = (0, Vec::new());
        each(&Cli::command(), &mut |command| {
            let text = command.get_after_help().map(ToString::to_string);
            for paragraph in text.unwrap_or_default().split("\n\n") {
                paragraphs += 1;
                let lines = paragraph.split('\n').skip(1);
                let ragged = lines.filter(|line| !line.starts_with(' '));
                broken.extend(ragged.map(ToOwned::to_owned));
            }
        });
        assert!(paragraphs > 50);
        assert!(broken.is_empty(), "{broken:#?}");
    }

    #[test]
    fn options_of_all_commands_come_after_those_of_the_command() {
        let mut cli = Cli::command();
        cli.build();
        let show = cli.find_subcommand_mut("show").unwrap();
        let help = show.render_help().to_string();
        let (own, global) = help.split_once("Global options:").unwrap();
        assert!(
            own.contains("--output") && !own.contains("--socket"),
            "{help}"
        );
        assert!(
            global.contains("--socket") && global.contains("--quiet"),
            "{help}"
        );
    }

    #[test]
    fn an_empty_name_is_refused() {
        for command in [
            &["show", ""][..],
            &["delete", "web", "", "--yes"],
            &["why", ""],
            &["template", "delete", ""],
        ] {
            let arguments = ["waifuctl"].iter().chain(command);
            let error = Cli::try_parse_from(arguments).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidValue, "{command:?}");
        }
    }
}
