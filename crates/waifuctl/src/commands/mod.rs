//! One file per verb.

mod completions;
mod console;
mod context;
mod create;
mod create_file;
mod delete;
mod doctor;
mod edit;
mod edit_spec;
mod events;
mod forward;
mod guest_command;
mod ip;
mod join_token;
mod label;
mod list;
mod login;
mod logs;
mod network;
mod node;
mod pool;
mod power;
mod publish;
mod reference;
mod rescue;
mod schema;
mod screen;
mod server;
mod show;
mod ssh;
mod template;
mod token;
mod unmanaged;
mod update;
mod version;
mod wait_for;
mod why;
mod why_evidence;

pub use console::cut;

use crate::cli::{Cli, Command};
use crate::context::Context;
use crate::failure::Failure;
use crate::printer::Printer;

/// Runs what needs no waifud, and gives back what does: nobody has to have a context to make or mend one.
pub async fn offline(cli: Cli) -> Result<Result<(), Failure>, Box<Cli>> {
    let printer = Printer::new(cli.json, cli.quiet);
    match cli.command {
        Command::Login(args) => Ok(login::run(printer, args).await),
        Command::Context(command) => Ok(context::run(printer, command)),
        Command::Schema(args) => Ok(schema::run(args)),
        Command::Completions(args) => Ok(completions::run(args)),
        Command::Reference(command) => Ok(reference::run(command)),
        command => Err(Box::new(Cli { command, ..cli })),
    }
}

/// Runs what was typed.
pub async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Create(args) => create::run(context, *args).await,
        Command::List(args) => list::run(context, args).await,
        Command::Show(args) => show::run(context, &args).await,
        Command::Delete(args) => delete::run(context, args).await,
        Command::Adopt(args) => unmanaged::adopt(context, args).await,
        Command::Start(args) => power::start(context, args).await,
        Command::Stop(args) => power::stop(context, args).await,
        Command::Reboot(args) => power::reboot(context, args).await,
        Command::Resize(args) => power::resize(context, args).await,
        Command::Rescue(args) => rescue::run(context, args).await,
        Command::Protect(args) => update::protect(context, &args.name, !args.off).await,
        Command::Edit(args) => edit::run(context, args).await,
        Command::Wait(args) => wait_for::run(context, args).await,
        Command::Label(args) => label::run(context, args).await,
        Command::Publish(args) => publish::publish(context, args).await,
        Command::Unpublish(args) => publish::unpublish(context, args).await,
        Command::Ip(args) => ip::run(context, &args.name).await,
        Command::Console(args) => console::run(context, args).await,
        Command::Exec(args) => guest_command::exec(context, args).await,
        Command::Passwd(args) => guest_command::passwd(context, args).await,
        Command::Logs(args) => logs::run(context, args).await,
        Command::Ssh(args) => ssh::ssh(context, args).await,
        Command::SshConfig(args) => ssh::config(context, args).await,
        Command::SshProxy(args) => ssh::proxy(context, &args.name).await,
        Command::Forward(args) => forward::run(context, args).await,
        Command::Screen(args) => screen::run(context, args).await,
        Command::Events(args) => events::run(context, args).await,
        Command::Why(args) => why::run(context, &args.name).await,
        Command::Template(command) => template::run(context, command).await,
        Command::Image(command) => pool::image(context, command).await,
        Command::Pool(command) => pool::run(context, command).await,
        Command::Df => pool::df(context).await,
        Command::Doctor => doctor::run(context).await,
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
