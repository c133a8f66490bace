//! Everything that can be typed. Definitions only: what a verb does is in its own file.

mod delete;
mod duration;
mod list;
mod power;
mod reach;
mod select;

use std::path::PathBuf;
use std::time::Duration;

pub use delete::DeleteArgs;
pub use duration::{parse_duration, parse_exec_timeout, parse_seconds};
pub use list::{ListArgs, ListFormat, ShowArgs, ShowFormat};
pub use power::{RescueArgs, ResizeArgs, StartArgs, StopArgs};
pub use reach::{ConsoleArgs, ForwardArgs, LogsArgs, ScreenArgs, SshArgs, SshConfigArgs};
pub use select::SelectArgs;

use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use clap_complete::engine::ArgValueCandidates;
use waifud_api::{CreateNic, Publish};
use waifud_types::template::{Datasource, Firmware};
use waifud_types::{ByteSize, Checksum, Name};

use crate::cli_access::{ContextCommand, LoginArgs, TokenCommand};

use crate::cli_guest::{ExecArgs, PasswdArgs};
use crate::complete;
use crate::network_args;

/// Virtual machines on the machines that you own.
#[derive(Debug, Parser)]
#[command(
    name = "waifuctl",
    version,
    about,
    max_term_width = 100,
    arg_required_else_help = true
)]
#[command(
    after_help = "Exit codes: 0 done; 1 wrong input, state or permission; 2 internal error, or waifud is unreachable; \
3 a --wait deadline passed and the work continues.\n\nWhich waifud: --context; --socket or WAIFUD_SOCKET; WAIFUD_URL with WAIFUD_CA (a file) and WAIFUD_TOKEN; the context in use; this machine's socket."
)]
pub struct Cli {
    /// `--socket`.
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        help = "The socket of waifud on this machine [env: WAIFUD_SOCKET] [default: /run/waifud/waifud.sock]"
    )]
    pub socket: Option<PathBuf>,

    /// The waifud of this context, made by `waifuctl login`; `local` is this machine's
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<Name>,

    /// Print JSON: data on stdout, an error's problem body on stderr
    #[arg(long, global = true)]
    pub json: bool,

    /// Print no notes, no warnings and no progress: only data and errors
    #[arg(short, long, global = true)]
    pub quiet: bool,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create an instance from a template
    #[command(
        visible_alias = "launch",
        after_help = "Examples:\n  waifuctl create web -t debian-12 --user-data web.yaml --wait\n  waifuctl create -t debian-12 --cpus 2 --memory 4G --disk 40G\n  waifuctl create ha -t debian-12 --network lan --network default\n  waifuctl create -f web.yaml --wait\n\nA file may hold several descriptions, divided by ---; flags change what a file with one says. Running it\nagain creates what is not there yet. Its fields: waifuctl schema instance.\nWithout a name, one is made up. Sizes need a unit; 2G means GiB."
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
    /// Adopt instances that exist on a node but not in waifud's database, as after a restored backup
    #[command(
        after_help = "Examples:\n  waifuctl adopt web\n  waifuctl adopt web --node alder --name web-2\n\nTheir guests run on and notice nothing. `waifuctl node show NODE` lists what is unmanaged."
    )]
    Adopt(AdoptArgs),
    /// Start instances; also those that powered themselves off
    #[command(
        after_help = "Examples:\n  waifuctl start web\n  waifuctl start web db --wait\n  waifuctl start -l tier=web\n  waifuctl start --all"
    )]
    Start(StartArgs),
    /// Ask instances to shut down; after 90 seconds they are powered off
    #[command(
        after_help = "Examples:\n  waifuctl stop web db --wait\n  waifuctl stop web --force\n  waifuctl stop --all --wait"
    )]
    Stop(StopArgs),
    /// Shut instances down and start them again; pending changes take effect
    #[command(
        after_help = "Examples:\n  waifuctl reboot web --wait\n  waifuctl reboot web --force\n\n--wait ends when the instance is ready again. cloud-init runs once per instance what it calls so (write_files,\nruncmd, packages and others): after a change of user-data, waifuctl edit --re-run makes the next boot a first one."
    )]
    Reboot(StopArgs),
    /// Change CPUs, memory or the disk of an instance
    #[command(
        after_help = "Examples:\n  waifuctl resize web --disk 40G\n  waifuctl resize web --cpus 4 --memory 8G --restart\n\nA disk grows at once and never shrinks; the guest's filesystem grows at the next boot where cloud-init's growpart\nis at work. CPUs and memory count from the next start on; until then show names them."
    )]
    Resize(ResizeArgs),
    /// Boot a small system with an instance's disks attached, to mend them
    #[command(
        after_help = "Examples:\n  waifuctl rescue web --force --wait\n  waifuctl ssh web -- mount /dev/vdb1 /mnt\n  waifuctl rescue web --end --wait\n\nIts address, its nics and its SSH keys stay; its user-data is not carried out by the small system. What is written to\nthe small system's own disk is thrown away at the end."
    )]
    Rescue(RescueArgs),
    /// Protect an instance against deletion; --off removes the protection
    #[command(after_help = "Examples:\n  waifuctl protect web\n  waifuctl protect web --off")]
    Protect(ProtectArgs),
    /// Change an instance's user-data or description in an editor
    #[command(
        after_help = "Examples:\n  waifuctl edit web\n  waifuctl edit web --user-data web.yaml --re-run\n  waifuctl edit web --spec\n\nThe editor is $VISUAL or $EDITOR. The next start reads new user-data, but cloud-init runs\nwrite_files, runcmd, packages and most other modules once per instance only. With --re-run the next boot is a first\nboot: cloud-init runs all of them again, and the guest gets new host keys."
    )]
    Edit(crate::cli_spec::EditArgs),
    /// Wait until instances reach a given state
    #[command(
        after_help = "Examples:\n  waifuctl wait web --for ready\n  waifuctl wait web db --for stopped --timeout 2m\n\nExit code 3 when the time is over. Ctrl-C ends the waiting (130), not the work."
    )]
    Wait(crate::cli_spec::WaitArgs),
    /// Set or remove labels of an instance
    #[command(
        after_help = "Examples:\n  waifuctl label web tier=front owner=ana\n  waifuctl label web owner-\n\nKEY=VALUE sets, KEY- removes; other labels stay."
    )]
    Label(crate::cli_spec::LabelArgs),
    /// Publish a node port to an instance
    #[command(
        after_help = "Examples:\n  waifuctl publish web 80\n  waifuctl publish web 8080:80\n  waifuctl publish dns 53/udp\n\nOn all addresses of the node but loopback. The guest sees who really asks."
    )]
    Publish(PublishArgs),
    /// Stop publishing a port of an instance
    #[command(
        after_help = "Examples:\n  waifuctl unpublish web 8080\n  waifuctl unpublish dns 53/udp"
    )]
    Unpublish(UnpublishArgs),
    /// Print an instance's address
    #[command(after_help = "Example:\n  ping $(waifuctl ip web)")]
    Ip(InstanceArg),
    /// Sit at an instance's serial console; Ctrl-] leaves
    #[command(
        after_help = "Examples:\n  waifuctl console web\n  waifuctl console web --raw\n\nWhat the guest prints may colour and move the cursor, and nothing else: titles, the clipboard, mouse reports\nand questions to the terminal are dropped. --raw passes everything; use it for guests that you trust. A console\nhas one user at a time, and whoever comes last has it."
    )]
    Console(ConsoleArgs),
    /// Run a program in an instance by its guest agent, and exit as it did
    #[command(
        after_help = "Examples:\n  waifuctl exec web -- systemctl is-system-running\n  waifuctl exec web -- sh -c 'df -h; exit 3'\n  waifuctl exec web --timeout 10m -- apt-get -y upgrade\n  waifuctl exec web -- sh < setup.sh\n\nThe program runs as root. A file or a pipe at standard input becomes its input, 1 MiB at most; in a loop that reads\nfrom standard input itself, use --no-stdin. The output comes when the program has ended: the first 2 MiB of standard\noutput and 512 KiB of standard error, printed byte by byte as it is. A guest that you do not trust can put escape\nsequences into it. A program that does not end in time goes on.\n\nExit codes: the program's own; 128 and the number of the signal that ended it; 127 when the guest has no such program;\n126 when it can't be executed; 255 when waifuctl could not run it or does not know its end. Needs qemu-guest-agent\nand /bin/sh in the guest."
    )]
    Exec(ExecArgs),
    /// Set the password of a user in an instance, by its guest agent
    #[command(
        after_help = "Examples:\n  waifuctl passwd web\n  waifuctl passwd web --user debian --password-file -\n\nWithout --password-file it is typed, and not shown. waifud writes it nowhere. Whoever can log in to the console with\nit can do so over SSH only where the guest's sshd allows passwords."
    )]
    Passwd(PasswdArgs),
    /// Print what an instance said on its console
    #[command(
        after_help = "Examples:\n  waifuctl logs web --lines 50\n  waifuctl logs web --follow\n  waifuctl logs web --cloud-init\n\nEscape sequences of the guest are shown and not obeyed, colours are left out; --raw passes all bytes. With\n--json, each line is an object."
    )]
    Logs(LogsArgs),
    /// Log in to an instance, or run a command there, by the system's ssh
    #[command(
        after_help = "Examples:\n  waifuctl ssh web\n  waifuctl ssh root@web -- systemctl status nginx\n  waifuctl ssh web -t -- htop\n  waifuctl ssh -A -L 8080:localhost:80 web\n\nOptions of ssh come before --; everything after it goes to the program. Through waifud and the node: the guest needs no address that you can reach. Host keys are those that its console\nshows. The exit code is the command's; 255 is ssh's own."
    )]
    Ssh(SshArgs),
    /// Print a file for ssh, scp, rsync and editors
    #[command(
        after_help = "Examples:\n  waifuctl ssh-config > ~/.ssh/waifud\n  ssh -F ~/.ssh/waifud web\n  scp -F ~/.ssh/waifud notes.txt web:"
    )]
    SshConfig(SshConfigArgs),
    /// Let ports of this machine lead to an instance, until Ctrl-C
    #[command(
        after_help = "Examples:\n  waifuctl forward web 8080:80\n  waifuctl forward db 5432 0:9187\n\nOn 127.0.0.1 only. To let others in, see waifuctl publish."
    )]
    Forward(ForwardArgs),
    /// Let viewers of this machine see an instance's screen, until Ctrl-C
    #[command(
        after_help = "Examples:\n  waifuctl screen web --viewer\n  waifuctl screen web --port 5901\n\nIt is VNC (RFB) on 127.0.0.1, without a password: whoever uses this machine can connect meanwhile."
    )]
    Screen(ScreenArgs),
    /// What ssh runs to get to an instance
    #[command(hide = true)]
    SshProxy(InstanceArg),
    /// Show what happened, oldest first
    #[command(after_help = "Examples:\n  waifuctl events web\n  waifuctl events --follow --json")]
    Events(EventsArgs),
    /// Tell why an instance is as it is, and what to do next
    #[command(after_help = "Example:\n  waifuctl why web")]
    Why(InstanceArg),
    /// Templates: what instances are made from
    #[command(subcommand)]
    Template(TemplateCommand),
    /// Images: the files that templates point at
    #[command(subcommand)]
    Image(crate::cli_pool::ImageCommand),
    /// Pools: where disks lie on a node
    #[command(subcommand)]
    Pool(crate::cli_pool::PoolCommand),
    /// Show how full the pools and the image store are
    #[command(after_help = "Example:\n  waifuctl df --json | jq .images_bytes")]
    Df,
    /// Look for what is wrong, and say what to do about it; fails when something is
    #[command(after_help = "Example:\n  waifuctl doctor")]
    Doctor,
    /// Networks: `default`, and bridges that nodes have
    #[command(subcommand)]
    Network(crate::cli_network::NetworkCommand),
    /// Nodes: the machines that run instances
    #[command(subcommand)]
    Node(crate::cli_node::NodeCommand),
    /// Print the JSON Schema of what can be written in a file
    #[command(after_help = "Example:\n  waifuctl schema instance > instance.schema.json")]
    Schema(crate::cli_spec::SchemaArgs),
    /// Show the version of waifuctl and of the waifud that it uses
    #[command(after_help = "Example:\n  waifuctl version --json | jq -r .server.version")]
    Version(VersionArgs),
    /// Print completions for a shell
    #[command(
        after_help = "Names of instances, nodes, templates and networks are completed by asking waifud.\n\nExample:\n  waifuctl completions bash > /etc/bash_completion.d/waifuctl"
    )]
    Completions(crate::cli_spec::CompletionsArgs),
    /// Tokens: who may use this waifud from elsewhere
    #[command(subcommand)]
    Token(TokenCommand),
    /// Use a waifud on another machine, by a token that was made there
    #[command(
        after_help = "Examples:\n  waifuctl login https://waifud.lan:7373\n  waifuctl login waifud.lan --fingerprint 3f9c… --token-file token --name home\n\nThe CA is believed by its fingerprint or file, or after you compared it; the token is kept in\n~/.config/waifud/contexts.toml, which only you can read."
    )]
    Login(LoginArgs),
    /// Contexts: which waifud is used
    #[command(subcommand)]
    Context(ContextCommand),
    /// Write this program's own reference: for packages and the docs
    #[command(subcommand, hide = true)]
    Reference(ReferenceCommand),
}

/// `create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Its name, a DNS label: a-z, 0-9 and -
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub name: Option<String>,
    /// A description of instances, as YAML; - reads standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The template; one of the catalog is added first
    #[arg(short, long, value_name = "NAME", required_unless_present = "file", add = ArgValueCandidates::new(complete::templates))]
    pub template: Option<String>,
    /// Virtual CPUs
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// Memory, such as 2G
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub memory: Option<ByteSize>,
    /// The root disk's size, such as 20G
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub disk: Option<ByteSize>,
    /// The pool of the root disk
    #[arg(long, value_name = "NAME")]
    pub pool: Option<String>,
    /// A file with cloud-init user-data; - reads standard input
    #[arg(long, value_name = "FILE")]
    pub user_data: Option<PathBuf>,
    /// A public SSH key: a file, or the key itself; repeatable [default: ~/.ssh/*.pub]
    #[arg(long, value_name = "FILE|KEY")]
    pub ssh_key: Vec<String>,
    /// Put no SSH key into the guest
    #[arg(long, conflicts_with = "ssh_key")]
    pub no_ssh_key: bool,
    /// A label; repeatable
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// Where it runs, and when
    #[command(flatten)]
    pub wishes: crate::cli_spec::WishArgs,
    /// A network, and a fixed address there; repeatable, the first has the default route [default: default]
    #[arg(long, value_name = "NAME[,address=IP[/PREFIX],gateway=IP,mac=MAC]", value_parser = network_args::network)]
    pub network: Vec<CreateNic>,
    /// A port of its node that leads to it; repeatable
    #[arg(long, value_name = "PORT[:GUESTPORT][/udp]", value_parser = network_args::port)]
    pub publish: Vec<Publish>,
    /// Check everything and create nothing
    #[arg(long, conflicts_with = "wait")]
    pub dry_run: bool,
    /// Wait until cloud-init in the guest has finished, and show the steps
    #[arg(short, long)]
    pub wait: bool,
    /// How long --wait waits, such as 90s, 10m or 1h
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Makes a repeated call the same call; made up by default
    #[arg(long, value_name = "KEY", hide = true, conflicts_with = "file")]
    pub idempotency_key: Option<String>,
}

/// `version`.
#[derive(Clone, Copy, Debug, Args)]
pub struct VersionArgs {
    /// Only of waifuctl; asks nobody
    #[arg(long)]
    pub client: bool,
}

/// One instance.
#[derive(Debug, Args)]
pub struct InstanceArg {
    /// Name or id of the instance
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
}

/// One name.
#[derive(Debug, Args)]
pub struct NameArg {
    /// Its name or id
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
}

/// `protect`.
#[derive(Debug, Args)]
pub struct ProtectArgs {
    /// Its name or id
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// Allow deletion again
    #[arg(long)]
    pub off: bool,
}

/// `publish`.
#[derive(Debug, Args)]
pub struct PublishArgs {
    /// Its name or id
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// The node's port, and the guest's if it is another
    #[arg(value_name = "PORT[:GUESTPORT][/udp]", value_parser = network_args::port)]
    pub port: Publish,
}

/// `unpublish`.
#[derive(Debug, Args)]
pub struct UnpublishArgs {
    /// Its name or id
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// The node's port
    #[arg(value_name = "PORT[/udp]", value_parser = network_args::port)]
    pub port: Publish,
}

/// `adopt`.
#[derive(Debug, Args)]
pub struct AdoptArgs {
    /// Names that they had, or ids
    #[arg(required = true, value_name = "INSTANCE", value_parser = NonEmptyStringValueParser::new())]
    pub instances: Vec<String>,
    /// The node that has them; needed when more than one has something of that name
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
    /// Another name than it had
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
}

/// `node confirm`.
#[derive(Debug, Args)]
pub struct ConfirmArgs {
    /// Names or ids
    #[arg(required_unless_present = "all", add = ArgValueCandidates::new(complete::nodes), value_name = "NODE", value_parser = NonEmptyStringValueParser::new())]
    pub names: Vec<String>,
    /// Every node that is not confirmed
    #[arg(long, conflicts_with = "names")]
    pub all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

/// `events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Only about this instance, template or node; TYPE/NAME also names the type
    #[arg(add = ArgValueCandidates::new(complete::instances))]
    pub object: Option<String>,
    /// Keep printing what happens
    #[arg(short, long)]
    pub follow: bool,
    /// Only after this revision
    #[arg(long, value_name = "REVISION")]
    pub since: Option<String>,
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub limit: u32,
}

/// `template …`.
#[derive(Debug, Subcommand)]
pub enum TemplateCommand {
    /// Add a template: from the catalog, from a URL, or from an image file on this machine
    #[command(
        after_help = "Examples:\n  waifuctl template add debian-12\n  waifuctl template add mine --url https://example.org/a.qcow2 --checksum sha256:…\n  waifuctl template add mine --url https://example.org/a.qcow2 --checksums-url https://example.org/SHA256SUMS\n  waifuctl template add debian-12 --file debian-12-genericcloud-amd64.qcow2 --user debian\n  waifuctl template add alpine --file nocloud_alpine-uefi.qcow2 --user alpine --datasource cidata --firmware uefi\n\nwaifud downloads by itself: Ctrl-C ends only the waiting, waifuctl template delete ends the download.\nwaifuctl template refresh NAME fetches what the publisher has by now, as a new revision."
    )]
    Add(TemplateAddArgs),
    /// Ask the source of templates again; what the publisher has by now becomes a new revision
    #[command(
        after_help = "Examples:\n  waifuctl template refresh debian-12\n  waifuctl template refresh --all\n\nAn image file that is missing in waifud's image store, after a restore without images for example, comes back too.\nInstances keep the image that they were made from."
    )]
    Refresh(crate::cli_template::TemplateRefreshArgs),
    /// List templates, and those on their way
    #[command(visible_alias = "ls")]
    List,
    /// List well-known images that template add, and create, fetch by name
    #[command(after_help = "Example:\n  waifuctl template catalog")]
    Catalog,
    /// Show one template with every image that it pointed at
    Show(NameArg),
    /// Forget a template, or end its download; instances made from it stay
    #[command(visible_alias = "rm")]
    Delete(TemplateDeleteArgs),
}

/// `template add`.
#[derive(Debug, Args)]
pub struct TemplateAddArgs {
    /// Its name, such as debian-12
    pub name: String,
    /// A qcow2 image on this machine
    #[arg(long, value_name = "PATH", conflicts_with_all = ["url", "catalog"])]
    pub file: Option<PathBuf>,
    /// Where waifud downloads a qcow2 image
    #[arg(long, value_name = "URL", conflicts_with = "catalog")]
    pub url: Option<String>,
    /// An entry of the catalog [default: the one called NAME]
    #[arg(long, value_name = "ENTRY")]
    pub catalog: Option<String>,
    /// The publisher's checksum of the image
    #[arg(long, value_name = "sha256:…|sha512:…", conflicts_with_all = ["file", "checksums_url"])]
    pub checksum: Option<Checksum>,
    /// The publisher's list of checksums, such as …/SHA256SUMS
    #[arg(long, value_name = "URL", conflicts_with = "file")]
    pub checksums_url: Option<String>,
    /// What the image is called in that list [default: the last part of its URL]
    #[arg(long, value_name = "NAME", requires = "checksums_url")]
    pub checksums_file: Option<String>,
    /// Take whatever https gives, without a checksum
    #[arg(long, requires = "url", conflicts_with_all = ["checksum", "checksums_url"])]
    pub insecure_no_checksum: bool,
    /// Do not wait for the download
    #[arg(long, conflicts_with = "file")]
    pub no_wait: bool,
    /// The user that cloud-init makes in it, such as debian
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// `x86_64` or `aarch64` [default: this machine's]
    #[arg(long)]
    pub arch: Option<String>,
    /// How its guests find their documents; cidata is a small disk, for images that look for nothing else [default: the
    /// catalog's, else openstack]
    #[arg(long, value_name = "KIND", value_parser = parse_datasource())]
    pub datasource: Option<Datasource>,
    /// What starts its boot loader [default: the catalog's, else bios]
    #[arg(long, value_name = "KIND", value_parser = parse_firmware())]
    pub firmware: Option<Firmware>,
}

/// `template delete`.
#[derive(Debug, Args)]
pub struct TemplateDeleteArgs {
    /// Its name
    #[arg(add = ArgValueCandidates::new(complete::templates), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

/// `reference …`.
#[derive(Debug, Subcommand)]
pub enum ReferenceCommand {
    /// Print the reference as Markdown
    Markdown,
    /// Write one man page for each verb
    Man {
        /// Where to
        dir: PathBuf,
    },
}

/// One of the datasources, by its word on the wire.
fn parse_datasource() -> impl TypedValueParser<Value = Datasource> {
    PossibleValuesParser::new(Datasource::ALL.map(Datasource::as_str)).map(|word| {
        let named = Datasource::ALL.into_iter().find(|one| one.as_str() == word);
        named.unwrap_or_default()
    })
}

/// One of the firmwares, by its word on the wire.
fn parse_firmware() -> impl TypedValueParser<Value = Firmware> {
    PossibleValuesParser::new(Firmware::ALL.map(Firmware::as_str)).map(|word| {
        let named = Firmware::ALL.into_iter().find(|one| one.as_str() == word);
        named.unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_empty_name_is_none() {
        for verb in [
            &["show", ""][..],
            &["delete", "web", "", "--yes"],
            &["why", ""],
            &["template", "delete", ""],
        ] {
            let typed = ["waifuctl"].iter().chain(verb);
            assert!(Cli::try_parse_from(typed).is_err(), "{verb:?}");
        }
    }
}
