//! What ssh needs to connect to an instance: host keys, user and proxy command.

use waifud_api::Instance;

use crate::context::{Context, Endpoint};
use crate::failure::Failure;
use crate::known_hosts;
use crate::ssh_options::{Parts, SshHost};

/// Learns the host keys and the user of an instance.
pub async fn host(
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
        .ok_or_else(|| Failure::internal("own-path", "cannot determine the path of waifuctl"))?;
    let mut words = vec![program];
    if let Endpoint::Options(options) = &context.endpoint {
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

/// The default user of the template. `None` if it has none or does not exist any more: then ssh uses its own default.
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
