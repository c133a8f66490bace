//! One file per command.

mod adopt;
mod capacity;
mod completions;
mod console;
mod context;
mod create;
mod create_file;
mod delete;
mod delete_unmanaged;
mod df;
mod dns;
mod doctor;
mod edit;
mod edit_spec;
mod events;
mod exec;
mod fabric;
mod fabric_client;
mod firewall;
mod forward;
mod image;
mod ip;
mod label;
mod list;
mod login;
mod logs;
mod moving;
mod network;
mod nic;
mod node;
mod passwd;
mod pool;
mod protect;
mod publish;
mod reboot;
mod recreate;
mod reference;
mod rescue;
mod resize;
mod schema;
mod screen;
mod show;
mod ssh;
mod ssh_config;
mod ssh_proxy;
mod start;
mod stop;
mod template;
mod token;
mod unpublish;
mod version;
mod wait;
mod why;
mod why_evidence;
mod why_firewall;

use crate::cli::{Cli, Command};
use crate::context::Context;
use crate::failure::Failure;
use crate::printer::Printer;

/// Runs commands that do not need waifud, and returns the others: `login` and `context` must work without a valid context.
pub async fn offline(cli: Cli) -> Result<Result<(), Failure>, Box<Cli>> {
    let printer = Printer::new(cli.global.json, cli.global.quiet);
    match cli.command {
        Command::Login(args) => Ok(login::run(printer, args).await),
        Command::Context(command) => Ok(context::run(printer, command)),
        Command::Schema(args) => Ok(schema::run(args)),
        Command::Completions(args) => Ok(completions::run(args)),
        Command::Reference(command) => Ok(reference::run(command)),
        command => Err(Box::new(Cli { command, ..cli })),
    }
}

/// Runs a command.
pub async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Create(args) if args.file.is_some() => create_file::run(context, *args).await,
        Command::Create(args) => create::run(context, *args).await,
        Command::List(args) => list::run(context, args).await,
        Command::Show(args) => show::run(context, &args).await,
        Command::Delete(args) => delete::run(context, args).await,
        Command::Adopt(args) => adopt::run(context, args).await,
        Command::Move(args) => Box::pin(moving::run(context, args)).await,
        Command::Recreate(args) => recreate::run(context, args).await,
        Command::Start(args) => start::run(context, args).await,
        Command::Stop(args) => stop::run(context, args).await,
        Command::Reboot(args) => reboot::run(context, args).await,
        Command::Resize(args) => resize::run(context, args).await,
        Command::Rescue(args) => rescue::run(context, args).await,
        Command::Protect(args) => protect::run(context, args).await,
        Command::Edit(args) => edit::run(context, args).await,
        Command::Wait(args) => wait::run(context, args).await,
        Command::Label(args) => label::run(context, args).await,
        Command::Publish(args) => publish::run(context, args).await,
        Command::Firewall(command) => firewall::run(context, command).await,
        Command::Unpublish(args) => unpublish::run(context, args).await,
        Command::Nic(command) => nic::run(context, command).await,
        Command::Ip(args) => ip::run(context, &args.name).await,
        Command::Console(args) => console::run(context, args).await,
        Command::Exec(args) => exec::run(context, args).await,
        Command::Passwd(args) => passwd::run(context, args).await,
        Command::Logs(args) => logs::run(context, args).await,
        Command::Ssh(args) => ssh::run(context, args).await,
        Command::SshConfig(args) => ssh_config::run(context, args).await,
        Command::SshProxy(args) => ssh_proxy::run(context, &args.name).await,
        Command::Forward(args) => forward::run(context, args).await,
        Command::Screen(args) => screen::run(context, args).await,
        Command::Events(args) => events::run(context, args).await,
        Command::Why(args) => why::run(context, &args.name).await,
        Command::Template(command) => template::run(context, command).await,
        Command::Image(command) => image::run(context, command).await,
        Command::Pool(command) => pool::run(context, command).await,
        Command::Df => df::run(context).await,
        Command::Capacity(args) => capacity::run(context, args).await,
        Command::Doctor => doctor::run(context).await,
        Command::Dns(command) => dns::run(context, command).await,
        Command::Fabric(command) => fabric::run(context, command).await,
        Command::Network(command) => network::run(context, command).await,
        Command::Node(command) => node::run(context, command).await,
        Command::Version(args) => version::run(context, args.client).await,
        Command::Completions(args) => completions::run(args),
        Command::Schema(args) => schema::run(args),
        Command::Token(command) => token::run(context, command).await,
        Command::Login(args) => login::run(context.printer, args).await,
        Command::Context(command) => context::run(context.printer, command),
        Command::Reference(command) => reference::run(command),
    }
}
