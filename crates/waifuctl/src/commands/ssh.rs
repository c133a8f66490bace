//! `waifuctl ssh`

use std::process::Command;

use waifud_api::Instance;
use waifud_types::InstanceState;

use crate::cli::SshArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::ssh_hints::{self, Login};
use crate::ssh_host::host;
use crate::ssh_options::SshHost;
use crate::wait::cloud_init_is_over;
use crate::{foreground, keys};

/// The exit code of failures of ssh itself, and of failures before it is started.
const OWN_FAILURE: u8 = 255;

/// Runs the system's ssh and exits with its exit code, or with [`OWN_FAILURE`].
pub async fn run(context: &Context, args: SshArgs) -> Result<(), Failure> {
    Failure::of_program(ssh(context, args).await, OWN_FAILURE)
}

async fn ssh(context: &Context, args: SshArgs) -> Result<u8, Failure> {
    let instance = context.client.instance(&args.login.name).await?;
    // As in ssh, -l overrides USER@.
    let user = args.user.or(args.login.user);
    let is_default = user.is_none();
    let host = host(context, &instance, user, args.keys.accept_new_key).await?;
    let mut command = Command::new("ssh");
    command.args(host.options(args.identity.as_deref()));
    if !args.command.is_empty() {
        // The user's configuration may set RemoteCommand; ssh refuses two commands.
        command.args(["-o", "RemoteCommand=none"]);
    }
    command.args(&args.ssh_option).arg(&host.host);
    if !args.command.is_empty() {
        command.arg("--").args(&args.command);
    }
    let code = foreground::run(command).await.map_err(|error| {
        Failure::input("no-ssh", "cannot start ssh")
            .cause(&error)
            .hint("install openssh-client")
    })?;
    if code == OWN_FAILURE {
        for hint in hints(context, &instance, &host, is_default).await {
            context.printer.note(&format!("hint: {hint}"));
        }
    }
    Ok(code)
}

/// Hints based on how the instance was created.
async fn hints(
    context: &Context,
    instance: &Instance,
    host: &SshHost,
    is_default: bool,
) -> Vec<String> {
    // Viewers cannot read the description.
    let description = context.client.description(&instance.id.to_string()).await;
    let Ok((description, _)) = description else {
        return Vec::new();
    };
    // The session may have lasted for hours.
    let now = context.client.instance(&instance.id.to_string()).await;
    let status = now.map_or_else(|_| instance.status.clone(), |now| now.status);
    ssh_hints::hints(&Login {
        name: instance.name.as_str(),
        is_booting: status.state == InstanceState::Running && !cloud_init_is_over(&status),
        user: host.user(),
        is_default,
        given: &description.ssh_keys,
        own: &keys::own(),
        user_data: description
            .user_data
            .as_ref()
            .map(|text| text.expose().as_str()),
        rescue: instance
            .spec
            .rescue
            .as_ref()
            .map(|rescue| rescue.ssh_keys.as_slice()),
    })
}
