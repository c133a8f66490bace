//! `waifuctl ssh`, `ssh-config` and `ssh-proxy`

use std::process::Command;

use waifud_api::Instance;
use waifud_api::client::ListQuery;

use crate::cli::{SshArgs, SshConfigArgs};
use crate::commands::cut;
use crate::context::{Context, Endpoint};
use crate::failure::Failure;
use crate::known_hosts;
use crate::relay::{Ended, join};
use crate::ssh_hints::{self, Login};
use crate::ssh_options::{Parts, SshHost};
use crate::stdout::ClosingStdout;
use crate::{foreground, keys};

/// The exit code of ssh's own failures.
const OWN_FAILURE: u8 = 255;

/// Runs the system's ssh on this terminal, and exits as it does.
pub async fn ssh(context: &Context, args: SshArgs) -> Result<(), Failure> {
    let instance = context.client.instance(&args.login.name).await?;
    // As ssh has it: -l outranks USER@.
    let user = args.user.or(args.login.user);
    let is_default = user.is_none();
    let host = host(context, &instance, user, args.keys.accept_new_key).await?;
    let mut command = Command::new("ssh");
    command.args(host.options(args.identity.as_deref()));
    if !args.command.is_empty() {
        // The user's own configuration may have one for every host: ssh refuses two.
        command.args(["-o", "RemoteCommand=none"]);
    }
    command.args(&args.ssh_option).arg(&host.host);
    if !args.command.is_empty() {
        command.arg("--").args(&args.command);
    }
    let code = foreground::run(command).await.map_err(|error| {
        Failure::input("no-ssh", "ssh can't be started")
            .cause(&error)
            .hint("install openssh-client")
    })?;
    if code == OWN_FAILURE {
        for hint in hints(context, &instance, &host, is_default).await {
            context.printer.note(&format!("hint: {hint}"));
        }
    }
    match code {
        0 => Ok(()),
        code => Err(Failure::of_the_guest(code)),
    }
}

/// What the instance was created with says more than ssh does.
async fn hints(
    context: &Context,
    instance: &Instance,
    host: &SshHost,
    is_default: bool,
) -> Vec<String> {
    // A viewer may not read it.
    let description = context.client.description(&instance.id.to_string()).await;
    let Ok((description, _)) = description else {
        return Vec::new();
    };
    ssh_hints::hints(&Login {
        name: instance.name.as_str(),
        user: host.user(),
        is_default,
        given: &description.ssh_keys,
        own: &keys::own(),
        user_data: description
            .user_data
            .as_ref()
            .map(|text| text.expose().as_str()),
    })
}

/// Prints a file for `ssh -F`, `Include`, scp, rsync and editors.
pub async fn config(context: &Context, args: SshConfigArgs) -> Result<(), Failure> {
    let accept = args.keys.accept_new_key;
    let mut hosts = Vec::new();
    for name in &args.names {
        let instance = context.client.instance(name).await?;
        hosts.push(host(context, &instance, None, accept).await?);
    }
    if args.names.is_empty() {
        for instance in running(context).await? {
            match host(context, &instance, None, accept).await {
                Ok(host) => hosts.push(host),
                Err(failure) => failure
                    .about(&format!("{} is left out", instance.name))
                    .print(context.printer.is_json()),
            }
        }
    }
    if matches!(context.way, Endpoint::Environment) {
        context
            .printer
            .note("note: this works only where WAIFUD_URL, WAIFUD_CA and WAIFUD_TOKEN are set; `waifuctl login` makes a context");
    }
    context.printer.print(&hosts, || {
        let sections: Vec<String> = hosts.iter().map(SshHost::section).collect();
        sections.join("\n")
    })
}

/// What ssh runs instead of connecting by itself: standard input and output are the guest's port 22.
pub async fn proxy(context: &Context, name: &str) -> Result<(), Failure> {
    let stream = context.client.open_stream(name, "ssh", None).await?;
    match join(stream, tokio::io::stdin(), ClosingStdout::default()).await {
        Ended::Done => Ok(()),
        Ended::Reset => Err(cut(name, "the guest reset the connection")),
        Ended::Cut(reason) => Err(cut(name, &reason)),
    }
}

async fn running(context: &Context) -> Result<Vec<Instance>, Failure> {
    let mut query = ListQuery {
        state: Some("running".to_owned()),
        ..ListQuery::whole()
    };
    let mut all = Vec::new();
    loop {
        let page = context.client.instances(&query).await?;
        all.extend(page.items);
        match page.next {
            Some(cursor) => query.cursor = Some(cursor),
            None => return Ok(all),
        }
    }
}

async fn host(
    context: &Context,
    instance: &Instance,
    user: Option<String>,
    accept_new: bool,
) -> Result<SshHost, Failure> {
    let known = known_hosts::learn(context, instance, accept_new).await?;
    let user = match user {
        Some(user) => Some(user),
        None => default_user(context, instance).await?,
    };
    let program = std::env::current_exe()
        .ok()
        .and_then(|path| path.into_os_string().into_string().ok())
        .ok_or_else(|| Failure::ours("own-path", "this program's own path is unknown"))?;
    let mut words = vec![program];
    if let Endpoint::Options(options) = &context.way {
        words.extend(options.iter().cloned());
    }
    SshHost::new(&Parts {
        name: instance.name.as_str(),
        id: &instance.id.to_string(),
        user: user.as_deref(),
        known: &known,
        program: &words,
    })
}

/// The template's. `None` where it says none or is gone: ssh then takes its own default.
async fn default_user(context: &Context, instance: &Instance) -> Result<Option<String>, Failure> {
    match context
        .client
        .template(instance.spec.template.as_str())
        .await
    {
        Ok(template) => Ok(template.default_user),
        Err(error) if error.problem().is_some_and(|p| p.status == 404) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
