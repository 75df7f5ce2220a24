//! Requests to the hub: redirects, the token, time limits, patience, and what a refusal means.

use super::settings::Settings;
use std::time::Duration;
use std::{fmt, io, thread};
use ureq::http::header::{ACCEPT_ENCODING, AUTHORIZATION, LOCATION, RANGE, RETRY_AFTER};
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Uri};
use ureq::{Agent, Body};

const MAX_REDIRECTS: usize = 10;
/// Attempts in a row that bring nothing.
pub(super) const MAX_ATTEMPTS: u32 = 5;
/// Doubled with every attempt.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Longest that a server's Retry-After is obeyed.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Why a request brought nothing.
pub(super) struct Failure {
    pub(super) status: Option<u16>,
    /// The hub's own name for what is wrong (`GatedRepo`, `RevisionNotFound`, ..).
    pub(super) code: Option<String>,
    pub(super) message: String,
    /// How long to wait at least before another attempt; none where another attempt would end the same.
    pub(super) wait: Option<Duration>,
}

impl Failure {
    /// Another attempt would end the same.
    pub(super) fn lasting(message: impl Into<String>) -> Self {
        Self { status: None, code: None, message: message.into(), wait: None }
    }

    /// Another attempt may end better.
    pub(super) fn passing(message: impl Into<String>) -> Self {
        Self { wait: Some(Duration::ZERO), ..Self::lasting(message) }
    }

    fn of_status(status: StatusCode, headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_string);
        let may_pass = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
        let asked = text(RETRY_AFTER.as_str()).and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
        Self {
            status: Some(status.as_u16()),
            code: text("x-error-code"),
            message: status.canonical_reason().unwrap_or("unknown status").to_lowercase(),
            wait: may_pass.then_some(asked.unwrap_or_default()),
        }
    }

    fn of_transport(error: ureq::Error, origin: &Origin, timeout: Duration) -> Self {
        let message = format!("{origin}: {}", words(&error, timeout));
        match error {
            ureq::Error::Io(_)
            | ureq::Error::Timeout(_)
            | ureq::Error::HostNotFound
            | ureq::Error::ConnectionFailed
            | ureq::Error::Protocol(_) => Self::passing(message),
            _ => Self::lasting(message),
        }
    }
}

/// What an error of the transport says to a person.
fn words(error: &ureq::Error, timeout: Duration) -> String {
    match error {
        ureq::Error::Timeout(_) => format!("nothing came for {} s (HF_HUB_DOWNLOAD_TIMEOUT)", timeout.as_secs()),
        ureq::Error::HostNotFound => "no such host: is there a network?".into(),
        error => error.to_string(),
    }
}

/// Counts attempts in a row that bring nothing, and waits longer after each.
pub(super) struct Patience {
    left: u32,
    wait: Duration,
}

impl Patience {
    pub(super) fn new(attempts: u32) -> Self {
        Self { left: attempts - 1, wait: FIRST_WAIT }
    }

    /// Waits before another attempt; gives a failure back that has to be reported.
    pub(super) fn bear(&mut self, failure: Failure) -> Result<(), Failure> {
        let Some(asked) = failure.wait.filter(|&asked| self.left > 0 && asked <= MAX_WAIT) else {
            return Err(failure);
        };
        thread::sleep(self.wait.max(asked));
        self.left -= 1;
        self.wait *= 2;
        Ok(())
    }
}

/// Scheme, host and port: who is asked.
#[derive(PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

impl Origin {
    fn of(url: &str) -> Option<Self> {
        let url: Uri = url.parse().ok()?;
        let scheme = url.scheme_str()?.to_lowercase();
        let port = url.port_u16().unwrap_or(default_port(&scheme));
        Some(Self { host: url.host()?.to_lowercase(), scheme, port })
    }
}

fn default_port(scheme: &str) -> u16 {
    if scheme == "https" { 443 } else { 80 }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scheme, host, port } = self;
        write!(f, "{scheme}://{host}")?;
        if *port == default_port(scheme) { Ok(()) } else { write!(f, ":{port}") }
    }
}

/// A client of one hub.
pub(super) struct Wire {
    agent: Agent,
    hub: Origin,
    authorization: Option<HeaderValue>,
    timeout: Duration,
}

impl Wire {
    /// None where the endpoint is not an address.
    pub(super) fn new(settings: &Settings) -> Option<Self> {
        let timeout = Some(settings.timeout);
        let config = Agent::config_builder()
            .user_agent(concat!("proxytune/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            // Followed here, because the token may not go along to another origin.
            .max_redirects(0)
            .timeout_resolve(timeout)
            .timeout_connect(timeout)
            .timeout_recv_response(timeout)
            .timeout_per_read(timeout)
            .timeout_per_write(timeout);
        Some(Self {
            agent: config.build().into(),
            hub: Origin::of(&settings.endpoint)?,
            authorization: settings.authorization.clone(),
            timeout: settings.timeout,
        })
    }

    /// Whether the hub is shown a token.
    pub(super) fn has_token(&self) -> bool {
        self.authorization.is_some()
    }

    /// Asks for what is at `url`, or for a `range` of it (`bytes=9-`). The answer's status is 200 (all of it) or 206.
    pub(super) fn get(&self, url: &str, range: Option<String>) -> Result<Response<Body>, Failure> {
        let mut url = url.to_string();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.ask(&url, range.as_deref())?;
            let status = response.status();
            if matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
                return Ok(response);
            }
            let Some(location) = response.headers().get(LOCATION).filter(|_| status.is_redirection()) else {
                return Err(Failure::of_status(status, response.headers()));
            };
            let next = location.to_str().ok().and_then(|location| redirected(&url, location));
            url = next.ok_or_else(|| Failure::lasting("redirected to no address that may be followed"))?;
        }
        Err(Failure::lasting(format!("more than {MAX_REDIRECTS} redirects")))
    }

    fn ask(&self, url: &str, range: Option<&str>) -> Result<Response<Body>, Failure> {
        let origin = Origin::of(url).ok_or_else(|| Failure::lasting("redirected to no address"))?;
        // Nothing may be compressed on the way: the sizes would not be those of the listing.
        let mut request = self.agent.get(url).header(ACCEPT_ENCODING, "identity");
        if let Some(authorization) = self.authorization.as_ref().filter(|_| origin == self.hub) {
            request = request.header(AUTHORIZATION, authorization);
        }
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        request.call().map_err(|error| Failure::of_transport(error, &origin, self.timeout))
    }

    /// What a failed read of a body means.
    pub(super) fn broken(&self, error: io::Error, n_bytes: u64) -> Failure {
        let reason = words(&ureq::Error::from(error), self.timeout);
        Failure::passing(format!("the connection broke after {n_bytes} bytes: {reason}"))
    }
}

/// Where a redirect leads; none where it is not an address, or gives up encryption.
fn redirected(from: &str, location: &str) -> Option<String> {
    let origin = Origin::of(from)?;
    let next = match location {
        path if path.starts_with('/') && !path.starts_with("//") => format!("{origin}{path}"),
        url => url.to_string(),
    };
    let encrypted = origin.scheme == "https";
    Origin::of(&next)
        .filter(|next| if encrypted { next.scheme == "https" } else { next.scheme.starts_with("http") })?;
    Some(next)
}

/// A header as a number.
pub(super) fn number(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// Escapes everything that is not plain in a part of an address, slashes too.
pub(super) fn escaped(part: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    part.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::{Origin, redirected};

    #[test]
    fn redirects_are_resolved_and_never_give_up_encryption() {
        let from = "https://hub.example/org/name/resolve/x/config.json";
        for (from, location, expected) in [
            (from, "/api/x?y=1", Some("https://hub.example/api/x?y=1")),
            (from, "https://cdn.example/x", Some("https://cdn.example/x")),
            (from, "http://hub.example/x", None),
            (from, "//cdn.example/x", None),
            (from, "x", None),
            (from, "", None),
            (from, "file:///etc/passwd", None),
            ("http://127.0.0.1:80/x", "/y", Some("http://127.0.0.1/y")),
            ("http://127.0.0.1:8080/x", "/y", Some("http://127.0.0.1:8080/y")),
            ("http://127.0.0.1:8080/x", "https://cdn.example/y", Some("https://cdn.example/y")),
            ("http://127.0.0.1:8080/x", "ftp://cdn.example/y", None),
        ] {
            assert_eq!(redirected(from, location).as_deref(), expected, "{from} {location}");
        }
    }

    #[test]
    fn who_is_asked_is_scheme_host_and_port() {
        let hub = Origin::of("https://hub.example").expect("an address");
        for (url, is_hub) in [
            ("https://HUB.example:443/x", true),
            ("https://user@hub.example/x", true),
            ("http://hub.example/x", false),
            ("https://hub.example:444/x", false),
            ("https://hub.example.evil/x", false),
            ("https://hub.example@evil.example/x", false),
            ("https://hub.example:443@evil.example/x", false),
        ] {
            let origin = Origin::of(url).expect(url);
            assert_eq!(origin == hub, is_hub, "{url}: {origin}");
        }
    }
}
