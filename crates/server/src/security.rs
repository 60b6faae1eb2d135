//! What stands between a browser and a server that trusts everyone on its own machine.
//!
//! A page of another site can make a browser send requests here. It cannot set the Host header: names that are not
//! ours are refused, which defeats DNS rebinding. And browsers say from which site a request comes: changes that
//! another site asks for are refused. No answer carries a CORS header, so other sites read nothing.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, Method, Uri, header};
use pensum_core::id::clip;

use crate::problem::{Kind, Problem};

/// Refuses a request whose host is not served here, or that another site makes a browser send.
///
/// # Errors
/// 421 for the host, 403 for the site, 400 for a Host header that cannot be read.
pub(crate) fn check(
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    listen: Option<SocketAddr>,
    allowed: &[String],
) -> Result<(), Problem> {
    let host = authority(uri, headers)?;
    // Browsers always send a host; a client that sends none is not one.
    if let Some(host) = host
        && !is_served(host_name(host), listen, allowed)
    {
        let detail = format!(
            "the host `{}` is not served here; add it to server.allowed_hosts",
            clip(host)
        );
        return Err(Problem::new(Kind::Misdirected, detail));
    }
    if method.is_safe() {
        return Ok(());
    }
    let foreign = match headers.get(header::ORIGIN) {
        Some(origin) => !origin.to_str().is_ok_and(|origin| is_same_site(origin, host)),
        None => headers
            .get("sec-fetch-site")
            .is_some_and(|site| site != "same-origin" && site != "none"),
    };
    if foreign {
        let detail = "the request comes from a page of another site, which may not change anything here";
        return Err(Problem::new(Kind::Forbidden, detail));
    }
    Ok(())
}

fn authority<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Result<Option<&'a str>, Problem> {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => Ok(uri.authority().map(axum::http::uri::Authority::as_str)),
        (Some(host), None) => host
            .to_str()
            .map(Some)
            .map_err(|_| Problem::new(Kind::BadRequest, "the Host header is not readable text")),
        (Some(_), Some(_)) => Err(Problem::new(Kind::BadRequest, "there is more than one Host header")),
    }
}

/// The name in `name`, `name:port`, `[address]` or `[address]:port`.
fn host_name(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    authority.rsplit_once(':').map_or(authority, |(name, _)| name)
}

fn is_served(name: &str, listen: Option<SocketAddr>, allowed: &[String]) -> bool {
    if let Ok(address) = name.parse::<IpAddr>() {
        return address.is_loopback()
            || listen.is_some_and(|l| l.ip() == address)
            || allowed.iter().any(|a| a.parse() == Ok(address));
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || allowed.iter().any(|a| a.eq_ignore_ascii_case(name))
}

/// True when the origin of a page is this server, as the client addresses it.
fn is_same_site(origin: &str, host: Option<&str>) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else {
        return false;
    };
    let default = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return false,
    };
    let bare = |text: &str| text.strip_suffix(default).unwrap_or(text).to_ascii_lowercase();
    host.is_some_and(|host| bare(host) == bare(authority))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_host(host: &str, served: bool) {
        let listen = Some(SocketAddr::from(([192, 168, 1, 5], 7400)));
        assert_eq!(
            is_served(host_name(host), listen, &["Tasks.Example".to_owned()]),
            served,
            "{host}"
        );
    }

    #[test]
    fn only_our_own_names_are_served() {
        check_host("localhost", true);
        check_host("LocalHost:7400", true);
        check_host("localhost.:7400", true);
        check_host("127.0.0.1:7400", true);
        check_host("127.8.9.1", true);
        check_host("[::1]:7400", true);
        check_host("[::1]", true);
        check_host("192.168.1.5:7400", true);
        check_host("tasks.example:7400", true);
        check_host("evil.example", false);
        check_host("127.0.0.1.evil.example:7400", false);
        check_host("localhost.evil.example", false);
        check_host("192.168.1.6", false);
        check_host("", false);
        check_host("[", false);
    }

    #[test]
    fn a_page_of_this_server_is_of_the_same_site() {
        assert!(is_same_site("http://localhost:7400", Some("localhost:7400")));
        assert!(is_same_site("https://tasks.example", Some("Tasks.Example:443")));
        assert!(!is_same_site("http://localhost:3000", Some("localhost:7400")));
        assert!(!is_same_site("null", Some("localhost:7400")));
        assert!(!is_same_site("file://localhost:7400", Some("localhost:7400")));
        assert!(!is_same_site("http://localhost:7400", None));
    }
}
