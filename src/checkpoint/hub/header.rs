//! The header of a safetensors file on the hub, for a model that is described and not run. It is kept in memory: what
//! stands in the cache under a file's name or hash is the whole file, to everyone who shares the cache.

use super::listing::Content;
use super::wire::{Failure, MAX_ATTEMPTS, Patience, Wire, number};
use std::io::{self, Read};
use std::ops::Range;
use ureq::http::header::{CONTENT_LENGTH, CONTENT_RANGE};
use ureq::http::{HeaderMap, StatusCode};

/// Asked for at a time: most headers are shorter, and come with their length.
const AHEAD_BYTES: u64 = 1 << 16;

/// A file from its beginning on, as far as it came.
pub(super) struct Beginning<'a> {
    wire: &'a Wire,
    url: &'a str,
    content: &'a Content,
    pub(super) bytes: Vec<u8>,
}

impl<'a> Beginning<'a> {
    pub(super) fn new(wire: &'a Wire, url: &'a str, content: &'a Content) -> Self {
        Self { wire, url, content, bytes: Vec::new() }
    }

    /// Brings at least the first `end` bytes, which the file has, in as many attempts as bring something and a few that
    /// do not.
    pub(super) fn reach(&mut self, end: u64) -> Result<(), Failure> {
        let mut patience = Patience::new(MAX_ATTEMPTS);
        // As in a download: a server that sends all of it again brings nothing until it gets farther than before.
        let mut farthest = self.n_bytes();
        while self.n_bytes() < end {
            if let Err(failure) = self.transfer(end) {
                if self.n_bytes() > farthest {
                    farthest = self.n_bytes();
                    patience = Patience::new(MAX_ATTEMPTS);
                }
                patience.bear(failure)?;
            }
        }
        Ok(())
    }

    fn n_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// One request. A server may send less of a file at a time than is asked for.
    fn transfer(&mut self, end: u64) -> Result<(), Failure> {
        let start = self.n_bytes();
        let part = start..end.max(start + AHEAD_BYTES).min(self.content.n_bytes);
        let response = self.wire.get(self.url, Some(format!("bytes={}-{}", part.start, part.end - 1)))?;
        let n_announced = if response.status() == StatusCode::PARTIAL_CONTENT {
            self.check_part(response.headers(), &part)?
        } else {
            // All of the file, from a server that knows no ranges: no more of it is read than is needed.
            self.check_whole(response.headers())?;
            self.bytes.clear();
            end
        };
        let mut body = response.into_body().into_reader().take(n_announced);
        match body.read_to_end(&mut self.bytes) {
            Ok(n) if n as u64 == n_announced => Ok(()),
            Ok(_) => Err(self.wire.broken(io::ErrorKind::UnexpectedEof.into(), self.n_bytes())),
            Err(error) => Err(self.wire.broken(error, self.n_bytes())),
        }
    }

    /// Bytes of the part that the server announces, at least one. Refuses a part that begins elsewhere, goes on past what
    /// was asked for, has another length than its range, or is of a file of another length than the listing's.
    fn check_part(&self, headers: &HeaderMap, part: &Range<u64>) -> Result<u64, Failure> {
        let range = headers.get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
        let refused = || {
            let (first, last) = (part.start, part.end - 1);
            Failure::lasting(format!("asked for bytes {first}-{last}, the server answers {range:?}"))
        };
        let (range, total) =
            range.and_then(|range| range.strip_prefix("bytes ")?.split_once('/')).ok_or_else(refused)?;
        if total != "*" && total != self.content.n_bytes.to_string() {
            return Err(self.content.differs(format!("the server has {total} bytes")));
        }
        let parsed = range.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
        let (first, last): (u64, u64) = parsed.ok_or_else(refused)?;
        if first != part.start || !part.contains(&last) {
            return Err(refused());
        }
        let n_bytes = last + 1 - first;
        match number(headers, &CONTENT_LENGTH) {
            Some(other) if other != n_bytes => {
                let message = format!("the server announces bytes {range}, and then {other} bytes");
                Err(Failure::lasting(message))
            }
            _ => Ok(n_bytes),
        }
    }

    fn check_whole(&self, headers: &HeaderMap) -> Result<(), Failure> {
        match number(headers, &CONTENT_LENGTH) {
            Some(n_bytes) if n_bytes != self.content.n_bytes => {
                Err(self.content.differs(format!("the server offers {n_bytes} bytes")))
            }
            _ => Ok(()),
        }
    }
}
