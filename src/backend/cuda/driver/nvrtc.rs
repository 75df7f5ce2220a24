//! NVRTC, NVIDIA's compiler as a library: its functions, looked up in a file that is found at run time.

use super::super::compile::{Arch, Version};
use libloading::{Library, Symbol};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::null_mut;

type Program = *mut c_void;
/// nvrtcResult; 0 is success. A number, since a later version may answer what no enum of ours has.
type Status = c_int;
type Texts = *const *const c_char;
type Create = unsafe extern "C" fn(*mut Program, *const c_char, *const c_char, c_int, Texts, Texts) -> Status;
type Compile = unsafe extern "C" fn(Program, c_int, Texts) -> Status;
type Destroy = unsafe extern "C" fn(*mut Program) -> Status;
type Size = unsafe extern "C" fn(Program, *mut usize) -> Status;
type Bytes = unsafe extern "C" fn(Program, *mut c_char) -> Status;
type Count = unsafe extern "C" fn(*mut c_int) -> Status;
type Explain = unsafe extern "C" fn(Status) -> *const c_char;
type VersionOf = unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status;

/// The functions of an NVRTC. Any number of threads may compile at a time.
pub(in crate::backend::cuda) struct Nvrtc {
    create: Symbol<'static, Create>,
    compile: Symbol<'static, Compile>,
    destroy: Symbol<'static, Destroy>,
    log_size: Symbol<'static, Size>,
    log: Symbol<'static, Bytes>,
    cubin_size: Symbol<'static, Size>,
    cubin: Symbol<'static, Bytes>,
    explain: Symbol<'static, Explain>,
    version: Version,
    architectures: Vec<Arch>,
}

/// A text and the name it goes by in messages and in `#include`.
pub(in crate::backend::cuda) struct Text {
    name: CString,
    text: CString,
}

impl Text {
    /// Neither has a zero byte.
    pub(in crate::backend::cuda) fn new(name: &str, text: String) -> Self {
        let [name, text] = [name.to_string(), text].map(|text| CString::new(text).expect("no zero byte"));
        Self { name, text }
    }
}

impl Nvrtc {
    /// The library in `file`; a bare name is looked for where the system's loader looks. The error says what is wrong with it.
    pub(in crate::backend::cuda) fn load(file: &Path) -> Result<Self, String> {
        // SAFETY: what runs on loading is the initialisation of NVIDIA's library, or of what the user put in its place.
        let library = unsafe { Library::new(file) }.map_err(|error| error.to_string())?;
        // It stays: its functions are called until the end, on any thread.
        let library: &'static Library = Box::leak(Box::new(library));
        fn find<T>(library: &'static Library, name: &CStr) -> Result<Symbol<'static, T>, String> {
            // SAFETY: each is called with the type that nvrtc.h of 12.0 to 13.5 declares for its name; it has never changed.
            unsafe { library.get(name) }.map_err(|error| error.to_string())
        }
        let version: Symbol<VersionOf> = find(library, c"nvrtcVersion")?;
        let [mut major, mut minor] = [0; 2];
        // SAFETY: it writes two numbers.
        let status = unsafe { version(&mut major, &mut minor) };
        let numbers: Symbol<Count> = find(library, c"nvrtcGetNumSupportedArchs")?;
        let architectures: Symbol<Count> = find(library, c"nvrtcGetSupportedArchs")?;
        let mut n = 0;
        // SAFETY: it writes one number.
        let counted = unsafe { numbers(&mut n) };
        let mut numbers = vec![0; n.max(0) as usize];
        // SAFETY: it writes as many numbers as it has just said.
        let listed = unsafe { architectures(numbers.as_mut_ptr()) };
        if [status, counted, listed] != [0; 3] {
            return Err(format!("it does not tell its version (codes {status}, {counted}, {listed})"));
        }
        Ok(Self {
            create: find(library, c"nvrtcCreateProgram")?,
            compile: find(library, c"nvrtcCompileProgram")?,
            destroy: find(library, c"nvrtcDestroyProgram")?,
            log_size: find(library, c"nvrtcGetProgramLogSize")?,
            log: find(library, c"nvrtcGetProgramLog")?,
            cubin_size: find(library, c"nvrtcGetCUBINSize")?,
            cubin: find(library, c"nvrtcGetCUBIN")?,
            explain: find(library, c"nvrtcGetErrorString")?,
            version: Version(major as u32, minor as u32),
            architectures: numbers.into_iter().map(|number| Arch(number as u32)).collect(),
        })
    }

    /// Its version.
    pub(in crate::backend::cuda) fn version(&self) -> Version {
        self.version
    }

    /// What it compiles for.
    pub(in crate::backend::cuda) fn architectures(&self) -> &[Arch] {
        &self.architectures
    }

    /// `source`, which may include `headers`, compiled; or the compiler's log.
    pub(in crate::backend::cuda) fn compile(
        &self,
        source: &Text,
        headers: &[Text],
        options: &[CString],
    ) -> Result<Output, String> {
        let pointers = |texts: &mut dyn Iterator<Item = &CString>| texts.map(|text| text.as_ptr()).collect::<Vec<_>>();
        let names = pointers(&mut headers.iter().map(|header| &header.name));
        let texts = pointers(&mut headers.iter().map(|header| &header.text));
        let options = pointers(&mut options.iter());
        let (text, name) = (source.text.as_ptr(), source.name.as_ptr());
        let mut handle = null_mut();
        // SAFETY: all are C strings that live until after the call, which copies them; the two lists have `headers.len()` each.
        let status =
            unsafe { (self.create)(&mut handle, text, name, headers.len() as c_int, texts.as_ptr(), names.as_ptr()) };
        self.check(status)?;
        let program = Owned { nvrtc: self, handle };
        // SAFETY: the program is alive, and so are the options, as many as are named.
        let status = unsafe { (self.compile)(program.handle, options.len() as c_int, options.as_ptr()) };
        let log = program.bytes(&self.log_size, &self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).trim_end_matches(['\0', '\n']).to_string();
        self.check(status).map_err(|error| format!("{error}\n{log}"))?;
        Ok(Output { cubin: program.bytes(&self.cubin_size, &self.cubin)?, log })
    }

    fn check(&self, status: Status) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: it gives a constant string for every number.
        let name = unsafe { CStr::from_ptr((self.explain)(status)) };
        Err(name.to_string_lossy().into_owned())
    }
}

/// What NVRTC makes of a source.
pub(in crate::backend::cuda) struct Output {
    pub(in crate::backend::cuda) cubin: Vec<u8>,
    /// Warnings, and what options ask it to tell.
    #[cfg_attr(not(test), expect(dead_code, reason = "the proof of registers reads what ptxas tells"))]
    pub(in crate::backend::cuda) log: String,
}

/// A program of NVRTC, destroyed when dropped.
struct Owned<'a> {
    nvrtc: &'a Nvrtc,
    handle: Program,
}

impl Owned<'_> {
    /// What `size` and `bytes` together give of the program.
    fn bytes(&self, size: &Size, bytes: &Bytes) -> Result<Vec<u8>, String> {
        let mut n = 0;
        // SAFETY: the program is alive; it writes one number.
        self.nvrtc.check(unsafe { size(self.handle, &mut n) })?;
        let mut all = vec![0u8; n];
        // SAFETY: it writes as many bytes as it has just said.
        self.nvrtc.check(unsafe { bytes(self.handle, all.as_mut_ptr().cast()) })?;
        Ok(all)
    }
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        // SAFETY: it was created, and nobody uses it after this. What a failure would leak is of no account.
        unsafe { (self.nvrtc.destroy)(&mut self.handle) };
    }
}
