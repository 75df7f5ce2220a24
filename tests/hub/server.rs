//! A hub on a port of this machine: listings, files with ranges and, on purpose, everything that goes wrong.

use ring::digest;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

/// File names and their bytes.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// A request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) path: String,
    /// First byte asked for, where a range was.
    pub(crate) start: Option<usize>,
    /// The byte after the last one asked for, where the range had an end.
    pub(crate) end: Option<usize>,
    pub(crate) authorization: Option<String>,
    /// How the answer may be compressed.
    pub(crate) encoding: Option<String>,
}

/// Names and values.
type Headers = Vec<(&'static str, String)>;

impl Asked {
    /// What the path ends in: a file, or a revision.
    pub(crate) fn file(&self) -> &str {
        self.path.rsplit('/').next().expect("paths have slashes")
    }
}

/// What goes wrong with an answer.
#[derive(Clone)]
pub(crate) enum Fault {
    /// A status with the hub's name for the error.
    Status(u16, &'static str),
    /// A status with Retry-After.
    Busy(u16, u32),
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// Nothing comes after so many bytes of the body.
    Stall(usize),
    /// What is there is elsewhere: an address that the path is appended to.
    Elsewhere(String),
    /// Ranges are not heard, and the connection ends after so many bytes of the body.
    Whole(usize),
    /// Ranges are not heard, and nothing comes after so many bytes of the body.
    WholeStall(usize),
    /// At most so many bytes of a range come, and no more are announced.
    Short(usize),
    /// Another range than was asked for, by the header alone.
    Range(&'static str),
    /// Something else is there, of whatever length.
    Other(Vec<u8>),
    /// The same without a length before it.
    Unannounced(Vec<u8>),
    /// The listing, changed.
    Listing(fn(&mut Value)),
}

struct Planned {
    part: &'static str,
    times: usize,
    fault: Fault,
}

#[derive(Default)]
struct State {
    /// By commit: the repository and its files.
    commits: BTreeMap<String, (String, Files)>,
    /// By repository and revision.
    revisions: BTreeMap<(String, String), String>,
    faults: Vec<Planned>,
    log: Vec<Asked>,
}

/// A running hub.
pub(crate) struct Server {
    port: u16,
    state: Arc<Mutex<State>>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        // Ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let state = shared.clone();
                // A client may go away at any time.
                thread::spawn(move || stream.and_then(|stream| answer(stream, &state)));
            }
        });
        Self { port, state }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread of the server panics")
    }

    /// Makes `files` what `revision` of a repository is; gives the commit.
    pub(crate) fn publish(&self, repo: &str, revision: &str, files: Files) -> String {
        let mut state = self.state();
        let commit = format!("{:040x}", 0xc0_ffee + state.commits.len());
        state.commits.insert(commit.clone(), (repo.into(), files));
        state.revisions.insert((repo.into(), revision.into()), commit.clone());
        commit
    }

    /// The next `times` requests whose path contains `part` go wrong.
    pub(crate) fn plan(&self, part: &'static str, times: usize, fault: Fault) {
        self.state().faults.push(Planned { part, times, fault });
    }

    /// Everything goes right from now on.
    pub(crate) fn heal(&self) {
        self.state().faults.clear();
    }

    /// The requests since the last call, in their order.
    pub(crate) fn log(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state().log)
    }

    /// The files that were asked for since the last call, without listings.
    pub(crate) fn files_asked(&self) -> Vec<String> {
        let files = self.log().into_iter().filter(|asked| asked.path.contains("/resolve/"));
        files.map(|asked| asked.file().to_string()).collect()
    }
}

fn answer(stream: TcpStream, state: &Mutex<State>) -> io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let path = first.split(' ').nth(1).unwrap_or_default().to_string();
    let mut asked = Asked { path, start: None, end: None, authorization: None, encoding: None };
    for line in lines {
        let line = line?;
        match line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value)) {
            Some((name, value)) if name == "range" => {
                let (start, last) =
                    value.strip_prefix("bytes=").and_then(|range| range.split_once('-')).expect("a range");
                asked.start = start.parse().ok();
                asked.end = last.parse().ok().map(|last: usize| last + 1);
            }
            Some((name, value)) if name == "authorization" => asked.authorization = Some(value.into()),
            Some((name, value)) if name == "accept-encoding" => asked.encoding = Some(value.into()),
            Some(_) => {}
            None => break,
        }
    }
    let (answer, fault) = state.lock().expect("no thread of the server panics").answer(asked);
    answer.send(stream, fault, first.starts_with("HEAD"))
}

/// An answer before anything goes wrong with it.
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    start: Option<usize>,
    end: Option<usize>,
    path: String,
}

impl State {
    fn answer(&mut self, asked: Asked) -> (Answer, Option<Fault>) {
        self.log.push(asked.clone());
        let planned = self.faults.iter_mut().find(|planned| planned.times > 0 && asked.path.contains(planned.part));
        let fault = planned.map(|planned| {
            planned.times -= 1;
            planned.fault.clone()
        });
        (self.right_answer(asked), fault)
    }

    fn right_answer(&self, Asked { path, start, end, .. }: Asked) -> Answer {
        let found = self.listing(&path).or_else(|| self.file(&path));
        match found {
            Some((headers, body)) => Answer { status: 200, headers, body, start, end, path },
            None => {
                let code = if path.contains("/resolve/") { "EntryNotFound" } else { "RepoNotFound" };
                let headers = vec![("X-Error-Code", code.into())];
                Answer { status: 404, headers, body: Vec::new(), start: None, end: None, path }
            }
        }
    }

    /// `/api/models/org/name/revision/REVISION?blobs=true`
    fn listing(&self, path: &str) -> Option<(Headers, Vec<u8>)> {
        let (repo, revision) = path.strip_prefix("/api/models/")?.split_once("/revision/")?;
        let revision = revision.split('?').next()?.replace("%2F", "/");
        let commit = self.revisions.get(&(repo.into(), revision.clone())).unwrap_or(&revision);
        let (_, files) = self.commits.get(commit)?;
        let siblings: Vec<Value> = files.iter().map(|(name, bytes)| sibling(name, bytes)).collect();
        Some((vec![], json!({ "id": repo, "sha": commit, "siblings": siblings }).to_string().into_bytes()))
    }

    /// `/org/name/resolve/COMMIT/FILE`, and with a branch for the commit as huggingface_hub also asks.
    fn file(&self, path: &str) -> Option<(Headers, Vec<u8>)> {
        let (repo, rest) = path.strip_prefix('/')?.split_once("/resolve/")?;
        let (revision, file) = rest.split_once('/')?;
        let commit = self.revisions.get(&(repo.into(), revision.into())).map_or(revision, String::as_str);
        let bytes = self.commits.get(commit).filter(|(of, _)| of == repo)?.1.get(&file.replace("%20", " "))?;
        Some((vec![("X-Repo-Commit", commit.into()), ("ETag", format!("\"{}\"", hash(file, bytes)))], bytes.clone()))
    }
}

/// What git or its large-file storage calls a file's bytes.
pub(crate) fn hash(file: &str, bytes: &[u8]) -> String {
    let hash = if is_large(file) {
        digest::digest(&digest::SHA256, bytes)
    } else {
        let framed = [format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat();
        digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &framed)
    };
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_large(file: &str) -> bool {
    file.ends_with(".safetensors")
}

fn sibling(name: &str, bytes: &[u8]) -> Value {
    let hash = hash(name, bytes);
    let mut sibling = json!({ "rfilename": name, "size": bytes.len(), "blobId": hash });
    if is_large(name) {
        sibling["blobId"] = json!("0123456789012345678901234567890123456789");
        sibling["lfs"] = json!({ "sha256": hash, "size": bytes.len(), "pointerSize": 134 });
    }
    sibling
}

impl Answer {
    fn send(mut self, mut stream: TcpStream, fault: Option<Fault>, head_alone: bool) -> io::Result<()> {
        let (mut is_announced, mut end, mut stalls, mut range) = (true, usize::MAX, false, None);
        match fault {
            None => {}
            Some(Fault::Status(status, code)) => self.fail(status, ("X-Error-Code", code.into())),
            Some(Fault::Busy(status, seconds)) => self.fail(status, ("Retry-After", seconds.to_string())),
            Some(Fault::Elsewhere(address)) => {
                let location = format!("{address}{}", self.path);
                self.fail(302, ("Location", location));
            }
            Some(Fault::Cut(n)) => end = n,
            Some(Fault::Stall(n)) => (end, stalls) = (n, true),
            Some(Fault::Whole(n)) => (self.start, end) = (None, n),
            Some(Fault::WholeStall(n)) => (self.start, end, stalls) = (None, n, true),
            Some(Fault::Short(n)) => {
                let end = self.start.unwrap_or(0) + n;
                self.end = Some(self.end.map_or(end, |asked| asked.min(end)));
            }
            Some(Fault::Range(other)) => range = Some(other),
            Some(Fault::Other(bytes)) => self.body = bytes,
            Some(Fault::Unannounced(bytes)) => (self.body, is_announced) = (bytes, false),
            Some(Fault::Listing(change)) => {
                let mut listing = serde_json::from_slice(&self.body).expect("this server's listing");
                change(&mut listing);
                self.body = listing.to_string().into_bytes();
            }
        }
        if let Some(start) = self.start.filter(|&start| self.status == 200 && start < self.body.len()) {
            let n = self.body.len();
            self.status = 206;
            self.body.truncate(self.end.unwrap_or(n));
            let right = format!("bytes {start}-{}/{n}", self.body.len() - 1);
            self.headers.push(("Content-Range", range.map_or(right, str::to_string)));
            self.body.drain(..start);
        }
        if is_announced {
            self.headers.push(("Content-Length", self.body.len().to_string()));
        }
        let headers: String = self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        write!(stream, "HTTP/1.1 {} x\r\nConnection: close\r\n{headers}\r\n", self.status)?;
        if !head_alone {
            stream.write_all(&self.body[..end.min(self.body.len())])?;
        }
        if stalls {
            // Until the client has had enough.
            let _ = stream.read(&mut [0])?;
        }
        Ok(())
    }

    fn fail(&mut self, status: u16, header: (&'static str, String)) {
        (self.status, self.body) = (status, Vec::new());
        self.headers.push(header);
    }
}
