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

    /// Brings at least the first `end` bytes, which the file has.
    pub(super) fn reach(&mut self, end: u64) -> Result<(), Failure> {
        let mut patience = Patience::new(MAX_ATTEMPTS);
        while self.n_bytes() < end {
            if let Err(failure) = self.transfer(end) {
                patience.bear(failure)?;
            }
        }
        Ok(())
    }

    fn n_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// One request.
    fn transfer(&mut self, end: u64) -> Result<(), Failure> {
        let start = self.n_bytes();
        let part = start..end.max(start + AHEAD_BYTES).min(self.content.n_bytes);
        let response = self.wire.get(self.url, Some(format!("bytes={}-{}", part.start, part.end - 1)))?;
        let limit = if response.status() == StatusCode::PARTIAL_CONTENT {
            self.check_part(response.headers(), &part)?;
            part.end - start
        } else {
            // All of the file, from a server that knows no ranges: no more of it is read than is needed.
            self.check_whole(response.headers())?;
            self.bytes.clear();
            end
        };
        let mut body = response.into_body().into_reader().take(limit);
        let read = body.read_to_end(&mut self.bytes);
        read.map_err(|error| self.wire.broken(error, self.n_bytes()))?;
        if self.n_bytes() < end {
            return Err(self.wire.broken(io::ErrorKind::UnexpectedEof.into(), self.n_bytes()));
        }
        Ok(())
    }

    /// Refuses a part that begins elsewhere, or is of a file of another length than the listing's.
    fn check_part(&self, headers: &HeaderMap, part: &Range<u64>) -> Result<(), Failure> {
        let range = headers.get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
        let of =
            |range: &str| Some(range.strip_prefix(&format!("bytes {}-", part.start))?.split_once('/')?.1.to_string());
        match range.and_then(of) {
            Some(total) if total == "*" || total == self.content.n_bytes.to_string() => Ok(()),
            Some(total) => Err(self.content.differs(format!("the server has {total} bytes"))),
            None => Err(Failure::lasting(format!("asked from byte {} on, the server answers {range:?}", part.start))),
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
