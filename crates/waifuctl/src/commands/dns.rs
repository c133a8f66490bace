//! `waifuctl dns …`

use std::net::SocketAddr;

use waifud_api::{Dns, DnsServer, DnsServerState};
use waifud_types::Name;
use waifud_types::dns::Resolver;

use crate::cli::{DnsCommand, DnsShowArgs, ResolverChoice};
use crate::context::Context;
use crate::failure::Failure;
use crate::printer::table;
use crate::text::escape;

/// How names are served.
const SWITCH_ON: &str = "on a node, set `listen` in section [dns] of /etc/waifud/agentd.toml, for example \
listen = [\"192.168.1.10\"], and run systemctl restart waifud-agentd";

/// Shows how other machines resolve the names of instances.
pub async fn run(context: &Context, command: DnsCommand) -> Result<(), Failure> {
    let DnsCommand::Show(args) = command;
    let dns = context.client.dns().await?;
    if let Some(node) = &args.on
        && !dns.servers.iter().any(|server| server.node == *node)
    {
        context.client.node(node.as_str()).await?;
        return Err(Failure::input("no-names", format!("{node} serves no names")).hint(SWITCH_ON));
    }
    let servers = usable(&dns, args.on.as_ref());
    if args.resolver.is_some() && servers.is_empty() && !context.printer.is_json() {
        return Err(Failure::input("no-names", "no node serves names").hint(SWITCH_ON));
    }
    let printer = context.printer;
    printer.print(&dns, || to_text(&dns, &args, &servers))?;
    for note in notes(&dns, &args, &servers) {
        printer.note(&note);
    }
    Ok(())
}

/// The servers that a resolver can use: those that work, and those of nodes that may be off. Loopback addresses only if it
/// runs on that node.
fn usable<'a>(dns: &'a Dns, on: Option<&Name>) -> Vec<&'a DnsServer> {
    let servers = dns.servers.iter();
    let usable = servers.filter(|server| {
        let is_local = server.address.ip().is_loopback();
        server.state != DnsServerState::Failed && (!is_local || on == Some(&server.node))
    });
    usable.collect()
}

fn to_text(dns: &Dns, args: &DnsShowArgs, servers: &[&DnsServer]) -> String {
    if let Some(resolver) = args.resolver.map(ResolverChoice::resolver) {
        return lines(dns, resolver, servers);
    }
    let mut parts = vec![format!("domain: {}", escape(&dns.domain))];
    if !dns.servers.is_empty() {
        let rows = dns.servers.iter().map(row).collect();
        parts.push(table(&["NODE", "ADDRESS", "STATE"], rows));
    }
    if !servers.is_empty() {
        parts.extend(Resolver::ALL.map(|resolver| lines(dns, resolver, servers)));
    }
    parts.join("\n\n")
}

fn row(server: &DnsServer) -> Vec<String> {
    vec![
        server.node.to_string(),
        server.address.to_string(),
        server.state.as_str().to_owned(),
    ]
}

/// The lines of a resolver, for each domain. Servers of all domains know the addresses of all guests.
fn lines(dns: &Dns, resolver: Resolver, servers: &[&DnsServer]) -> String {
    let mut domains: Vec<&str> = servers
        .iter()
        .map(|server| server.domain.as_str())
        .collect();
    domains.sort_by_key(|domain| (*domain != dns.domain, *domain));
    domains.dedup();
    let mut zones: &[String] = &dns.reverse_zones;
    let mut text = String::new();
    for domain in domains {
        let its = servers.iter().filter(|server| server.domain == domain);
        let its: Vec<SocketAddr> = its.map(|server| server.address).collect();
        text.push_str(&resolver.lines(domain, zones, &its));
        // A zone may be configured once.
        zones = &[];
    }
    text.trim_end().to_owned()
}

fn notes(dns: &Dns, args: &DnsShowArgs, servers: &[&DnsServer]) -> Vec<String> {
    let mut notes = Vec::new();
    for server in &dns.servers {
        if server.state == DnsServerState::Failed
            && let Some(message) = &server.message
        {
            notes.push(format!("note: {}: {}", server.node, escape(message)));
        } else if server.address.ip().is_loopback() && args.on.as_ref() != Some(&server.node) {
            notes.push(format!(
                "note: {} is for a resolver on {}: waifuctl dns show --on {}",
                server.address, server.node, server.node
            ));
        }
    }
    if servers.is_empty() && dns.servers.is_empty() {
        notes.push(format!(
            "no node serves names to other machines yet: {SWITCH_ON}"
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(node: &str, address: &str, state: DnsServerState) -> DnsServer {
        DnsServer {
            node: node.parse().unwrap(),
            address: address.parse().unwrap(),
            domain: "waifu.internal".to_owned(),
            state,
            message: (state != DnsServerState::Serving).then(|| "why".to_owned()),
        }
    }

    fn dns() -> Dns {
        Dns {
            domain: "waifu.internal".to_owned(),
            reverse_zones: vec!["144.10.in-addr.arpa".to_owned()],
            servers: vec![
                server("alder", "192.168.1.10:53", DnsServerState::Serving),
                server("alder", "127.0.0.1:5353", DnsServerState::Serving),
                server("birch", "192.168.1.11:53", DnsServerState::Unreachable),
                server("cedar", "192.168.1.12:53", DnsServerState::Failed),
            ],
        }
    }

    fn args(resolver: Option<ResolverChoice>, on: Option<&str>) -> DnsShowArgs {
        let on = on.map(|name| name.parse().unwrap());
        DnsShowArgs { resolver, on }
    }

    #[test]
    fn nodes_that_may_be_off_are_used_and_failed_ones_are_named() {
        let (dns, args) = (dns(), args(Some(ResolverChoice::Dnsmasq), None));
        let servers = usable(&dns, None);
        assert_eq!(
            to_text(&dns, &args, &servers),
            "# /etc/dnsmasq.d/waifud.conf\n\
             rebind-domain-ok=/waifu.internal/\n\
             server=/waifu.internal/192.168.1.10\n\
             server=/waifu.internal/192.168.1.11\n\
             server=/144.10.in-addr.arpa/192.168.1.10\n\
             server=/144.10.in-addr.arpa/192.168.1.11"
        );
        assert_eq!(
            notes(&dns, &args, &servers),
            [
                "note: 127.0.0.1:5353 is for a resolver on alder: waifuctl dns show --on alder",
                "note: cedar: why"
            ]
        );
    }

    #[test]
    fn loopback_addresses_are_for_a_resolver_on_the_node() {
        let (dns, args) = (dns(), args(Some(ResolverChoice::Unbound), Some("alder")));
        let servers = usable(&dns, args.on.as_ref());
        let text = to_text(&dns, &args, &servers);
        assert!(text.contains("forward-addr: 127.0.0.1@5353"), "{text}");
        assert_eq!(notes(&dns, &args, &servers), ["note: cedar: why"]);
    }

    #[test]
    fn without_a_resolver_the_nodes_and_all_lines_are_shown() {
        let (dns, args) = (dns(), args(None, None));
        let text = to_text(&dns, &args, &usable(&dns, None));
        assert!(
            text.starts_with(
                "domain: waifu.internal\n\n\
                 NODE   ADDRESS          STATE\n\
                 alder  192.168.1.10:53  serving\n\
                 alder  127.0.0.1:5353   serving\n\
                 birch  192.168.1.11:53  unreachable\n\
                 cedar  192.168.1.12:53  failed\n\n\
                 # /etc/dnsmasq.d/10-waifud.conf"
            ),
            "{text}"
        );
        for place in ["unbound.conf.d", "dnsmasq.d/waifud.conf", "resolved.conf.d"] {
            assert!(text.contains(place), "{place}: {text}");
        }
    }

    #[test]
    fn a_node_with_a_domain_of_its_own_is_asked_about_that_domain() {
        let mut dns = dns();
        dns.servers[2].domain = "example.org".to_owned();
        let text = lines(&dns, Resolver::Dnsmasq, &usable(&dns, None));
        assert!(
            text.contains("server=/waifu.internal/192.168.1.10\n"),
            "{text}"
        );
        assert!(text.contains("server=/example.org/192.168.1.11"), "{text}");
        assert!(
            !text.contains("server=/waifu.internal/192.168.1.11"),
            "{text}"
        );
        assert_eq!(text.matches("/144.10.in-addr.arpa/").count(), 1, "{text}");
    }

    #[test]
    fn without_servers_the_setting_is_named() {
        let mut dns = dns();
        dns.servers.clear();
        let args = args(None, None);
        assert_eq!(to_text(&dns, &args, &[]), "domain: waifu.internal");
        let notes = notes(&dns, &args, &[]);
        assert!(
            notes[0].contains("section [dns] of /etc/waifud/agentd.toml"),
            "{notes:?}"
        );
    }
}
