//! What ssh needs to connect to an instance: host keys, user and proxy command.

use waifud_api::Instance;
use waifud_types::Name;

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

/// The template of the system that the instance boots.
fn booted_template(instance: &Instance) -> &Name {
    let rescue = instance.spec.rescue.as_ref();
    rescue.map_or(&instance.spec.template, |rescue| &rescue.template)
}

/// The default user of the booted template. `None` if it has none or does not exist any more: then ssh uses its own default.
async fn default_user(context: &Context, instance: &Instance) -> Result<Option<String>, Failure> {
    let template = booted_template(instance).as_str();
    match context.client.template(template).await {
        Ok(template) => Ok(template.default_user),
        Err(error) if error.problem().is_some_and(|p| p.status == 404) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_in_rescue_has_the_user_of_the_rescue_system() {
        let image = format!("sha256:{}", "0".repeat(64));
        let mut json = serde_json::json!({
            "id": "0198c0de-0000-7000-8000-00000000abcd", "name": "web", "labels": {}, "generation": 1,
            "created_at": "2026-11-22T00:00:00Z",
            "spec": {"template": "debian-12", "image": image, "cpus": 1,
                "memory_bytes": 1 << 30, "run": true, "restart": "never", "priority": 0, "protected": false, "disks": [],
                "nics": [], "publish": [], "placement": {"node": null, "spread": null}, "user_data": null},
            "status": {"observed_generation": null, "state": "running", "reason": null, "ready": false, "ready_by": null,
                "node": "alder", "hypervisor": null, "stopped_by": null, "last_state": null, "last_seen": null,
                "addresses": [], "step": null, "restart_needed": [], "cloud_init": {"state": "pending",
                "instance_id": null, "datasource": null, "errors": []}, "conditions": []}
        });
        let booted = |json: &serde_json::Value| {
            let instance: Instance = serde_json::from_value(json.clone()).unwrap();
            booted_template(&instance).to_string()
        };
        assert_eq!(booted(&json), "debian-12");
        json["spec"]["rescue"] = serde_json::json!({
            "template": "alpine", "image": image, "datasource": "nocloud", "firmware": "bios", "ssh_keys": [],
        });
        assert_eq!(booted(&json), "alpine");
    }
}
