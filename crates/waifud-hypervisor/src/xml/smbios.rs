//! The system information (SMBIOS type 1) by which cloud-init detects its datasource.
//!
//! | datasource | what cloud-init checks |
//! |---|---|
//! | OpenStack | the product is `OpenStack Nova` |
//! | EC2 | UUID and serial number are equal and begin with `ec2` |
//! | NoCloud over HTTP | the serial number contains the address |
//! | `cidata` | only the disk's label; the product must not be that of a cloud |

use waifud_types::InstanceId;
use waifud_types::template::{Datasource, NOCLOUD_SEED};

use super::tree::Element;
use crate::DomainSpec;

/// libvirt's namespace for arguments of QEMU.
pub(super) const QEMU_NAMESPACE: &str = "http://libvirt.org/schemas/domain/qemu/1.0";

/// The element that contains these arguments.
pub(super) const COMMANDLINE: &str = "qemu:commandline";

pub(super) fn sysinfo(spec: &DomainSpec) -> Element {
    let (manufacturer, product) = match spec.datasource {
        Datasource::Openstack => ("OpenStack Foundation", "OpenStack Nova"),
        Datasource::Ec2 | Datasource::Nocloud | Datasource::Cidata => ("waifud", "waifud"),
    };
    let id = spec.id.to_string();
    let serial = match spec.datasource {
        Datasource::Openstack | Datasource::Cidata => id.clone(),
        Datasource::Ec2 => ec2_uuid(spec.id),
        Datasource::Nocloud => NOCLOUD_SEED.to_owned(),
    };
    let entries = [
        ("manufacturer", manufacturer),
        ("product", product),
        ("serial", &serial),
        ("uuid", &id),
    ];
    let entries = entries.map(|(name, value)| Element::new("entry").with("name", name).text(value));
    Element::new("sysinfo")
        .with("type", "smbios")
        .child(Element::new("system").children(entries))
}

/// For EC2, a UUID that differs from the domain's. libvirt requires both to be equal, and the domain's is the
/// instance's id. So the UUID is passed to QEMU after libvirt's own argument; QEMU uses the last one.
pub(super) fn override_uuid(spec: &DomainSpec) -> Option<Element> {
    if spec.datasource != Datasource::Ec2 {
        return None;
    }
    let arg = |value: &str| Element::new("qemu:arg").with("value", value);
    let element = Element::new(COMMANDLINE)
        .with("xmlns:qemu", QEMU_NAMESPACE)
        .child(arg("-smbios"))
        .child(arg(&format!("type=1,uuid={}", ec2_uuid(spec.id))));
    Some(element)
}

/// The instance's id with its first three digits replaced by `ec2`.
fn ec2_uuid(id: InstanceId) -> String {
    let mut text = id.to_string();
    text.replace_range(..3, "ec2");
    text
}

/// Whether an argument of QEMU was written by [`override_uuid`], for any instance.
pub(super) fn is_our_argument(arguments: &[Element], index: usize) -> bool {
    let value = |index: usize| arguments.get(index).and_then(|arg| arg.attribute("value"));
    let uuid = |index| value(index).is_some_and(|text| text.starts_with("type=1,uuid=ec2"));
    uuid(index) || value(index) == Some("-smbios") && uuid(index + 1)
}

#[cfg(test)]
mod tests {
    use super::super::render::tests::spec;
    use super::*;

    #[test]
    fn smbios_entries_of_each_datasource() {
        let mut spec = spec();
        let entries: Vec<String> = Datasource::ALL
            .into_iter()
            .map(|datasource| {
                spec.datasource = datasource;
                let arguments =
                    override_uuid(&spec).map_or_else(String::new, |element| element.write());
                format!(
                    "{}\n{}{arguments}",
                    datasource.as_str(),
                    sysinfo(&spec).write()
                )
            })
            .collect();
        insta::assert_snapshot!(entries.join("\n"));
    }
}
