//! Clients that work on registers and on a set, all at once, and write down what they did and what they were told.
//!
//! Each attempt is an event of its own and is never repeated: what was not answered stays open. A plant makes clients lie about what
//! they were told, to prove that the checkers would find it if the store did.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::content::{self, PART};
use super::history::{Action, Change, Event, History, Listing, Member, Set, Time, Told, Value};
use crate::multipart::Upload;
use crate::s3::{Answer, S3};

/// Registers that are worked on at a time.
const WINDOW: u64 = 8;
/// Attempts on a register before another takes its place: histories stay short enough to be checked.
const ATTEMPTS: u64 = 200;
/// Members of a group, which is what one listing shows.
const GROUP: usize = 200;
/// An attempt that took longer is left open.
const PATIENCE: Duration = Duration::from_secs(20);
/// One lie in so many chances.
const LIES: u32 = 12;
/// After an attempt that failed.
const PAUSE: Duration = Duration::from_millis(300);

/// What a planted bug does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum Plant {
    /// A PUT is acknowledged and was not made.
    LostWrite,
    /// A GET answers with what an earlier one answered.
    StaleRead,
    /// A DELETE is acknowledged and was not made.
    DeletedBack,
    /// A bit is wrong in a body.
    WrongBytes,
    /// A listing shows a key that nobody wrote.
    Phantom,
    /// A listing leaves a key out.
    LostKey,
    /// A conditional write is made without its condition.
    BlindSwap,
    /// A completed upload has one of its parts.
    HalfUpload,
}

impl Plant {
    /// All of them, by the names they have on the command line.
    pub const ALL: [(&'static str, Self); 8] = [
        ("lost-write", Self::LostWrite),
        ("stale-read", Self::StaleRead),
        ("deleted-back", Self::DeletedBack),
        ("wrong-bytes", Self::WrongBytes),
        ("phantom", Self::Phantom),
        ("lost-key", Self::LostKey),
        ("blind-swap", Self::BlindSwap),
        ("half-upload", Self::HalfUpload),
    ];
}

/// What all clients of a run share.
#[derive(Debug)]
pub struct World {
    s3: S3,
    bucket: String,
    plant: Option<Plant>,
    started: Instant,
    pub stop: AtomicBool,
    values: AtomicU64,
    attempts: AtomicU64,
    groups: Mutex<Vec<Vec<Member>>>,
    listings: Mutex<Vec<(usize, Listing)>>,
    events: Mutex<Vec<Event>>,
    wrong: Mutex<Vec<String>>,
    /// Values of multipart uploads.
    long: Mutex<std::collections::HashSet<Value>>,
    pub answered: AtomicU64,
    pub open: AtomicU64,
}

impl World {
    pub fn new(s3: S3, bucket: String, plant: Option<Plant>) -> Self {
        Self {
            s3,
            bucket,
            plant,
            started: Instant::now(),
            stop: AtomicBool::new(false),
            values: AtomicU64::new(1),
            attempts: AtomicU64::new(0),
            groups: Mutex::new(vec![Vec::new()]),
            listings: Mutex::default(),
            events: Mutex::default(),
            wrong: Mutex::default(),
            long: Mutex::default(),
            answered: AtomicU64::new(0),
            open: AtomicU64::new(0),
        }
    }

    pub fn now(&self) -> Time {
        self.started.elapsed().as_nanos() as Time
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn value(&self) -> Value {
        self.values.fetch_add(1, Ordering::Relaxed)
    }

    /// What happened.
    pub fn history(&self) -> History {
        let mut events = self.events.lock().expect("no holder panics").clone();
        events.sort_by_key(|event| event.begin);
        let groups = self.groups.lock().expect("no holder panics").clone();
        let listings = self.listings.lock().expect("no holder panics").clone();
        let own = |group: usize| {
            listings.iter().filter(move |(of, _)| *of == group).map(|(_, listing)| listing.clone())
        };
        let set = |(group, members)| Set { members, listings: own(group).collect() };
        let sets = groups.into_iter().enumerate().map(set).collect();
        let wrong_bytes = self.wrong.lock().expect("no holder panics").clone();
        History { events, sets, wrong_bytes }
    }

    /// The bucket, for who looks at the end.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// Keys of registers that were worked on.
    pub fn registers(&self) -> usize {
        (self.attempts.load(Ordering::Relaxed) / ATTEMPTS + WINDOW) as usize
    }

    /// One more read of a register, which is waited for: what there is in the end.
    pub async fn read_finally(&self, register: usize) -> anyhow::Result<()> {
        let mut client = Client::new(self, usize::MAX, 0);
        let begun = Instant::now();
        while !client.get(register).await {
            anyhow::ensure!(begun.elapsed() < 6 * PATIENCE, "{} cannot be read", register_key(register));
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// One more listing of every group, waited for.
    pub async fn list_finally(&self) -> anyhow::Result<()> {
        let groups = self.groups.lock().expect("no holder panics").len();
        let mut client = Client::new(self, usize::MAX, 0);
        for group in 0..groups {
            let begun = Instant::now();
            while !client.list(group).await {
                anyhow::ensure!(begun.elapsed() < 6 * PATIENCE, "group {group} cannot be listed");
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    }
}

fn register_key(register: usize) -> String {
    format!("register/{register:06}")
}

fn was_not_sent(error: &anyhow::Error) -> bool {
    let refused = |cause: &std::io::Error| cause.kind() == std::io::ErrorKind::ConnectionRefused;
    error.chain().any(|cause| cause.downcast_ref().is_some_and(refused))
}

/// One client of a run.
struct Client<'w> {
    world: &'w World,
    number: usize,
    rng: SmallRng,
    /// What it last read of a register: the value and its ETag.
    known: HashMap<usize, (Value, String)>,
    /// What it read before that, for a plant.
    before: HashMap<usize, Option<Value>>,
}

/// Works until the world stops.
pub async fn work(world: &World, number: usize, seed: u64) {
    let mut client = Client::new(world, number, seed);
    while !world.is_over() {
        let answered = match client.rng.random_range(0..10) {
            0 | 1 => client.add().await,
            2 => client.remove().await,
            3 => {
                let group = world.groups.lock().expect("no holder panics").len() - 1;
                client.list(group).await
            }
            _ => client.register().await,
        };
        let counter = if answered { &world.answered } else { &world.open };
        counter.fetch_add(1, Ordering::Relaxed);
        if !answered {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl<'w> Client<'w> {
    fn new(world: &'w World, number: usize, seed: u64) -> Self {
        let rng = SmallRng::seed_from_u64(seed);
        Self { world, number, rng, known: HashMap::new(), before: HashMap::new() }
    }

    fn lies(&mut self, plant: Plant) -> bool {
        self.world.plant == Some(plant) && self.rng.random_ratio(1, LIES)
    }

    /// `None`: no answer. Where nobody listens nothing was asked for: it is tried again, for as long as there is patience.
    async fn send(&self, call: crate::s3::Call) -> Option<Answer> {
        let attempt = async {
            loop {
                match call.send().await {
                    Ok(answer) => return Some(answer),
                    Err(error) if was_not_sent(&error) => tokio::time::sleep(PAUSE).await,
                    Err(_) => return None,
                }
            }
        };
        tokio::time::timeout(PATIENCE, attempt).await.ok()?
    }

    fn record(&self, register: usize, action: Action, begin: Time, told: Told) -> bool {
        let event = Event { client: self.number, register, action, begin, end: self.world.now(), told };
        self.world.events.lock().expect("no holder panics").push(event);
        told != Told::Unknown
    }

    async fn register(&mut self) -> bool {
        let attempt = self.world.attempts.fetch_add(1, Ordering::Relaxed);
        let register = (attempt / ATTEMPTS + self.rng.random_range(0..WINDOW)) as usize;
        match self.rng.random_range(0..100) {
            0..40 => self.get(register).await,
            40..60 => {
                let value = self.world.value();
                self.put(register, Action::Put(value), value, |call| call).await
            }
            60..70 => {
                let value = self.world.value();
                let absent = |call: crate::s3::Call| call.header("if-none-match", "*");
                self.put(register, Action::PutIfAbsent(value), value, absent).await
            }
            70..85 => {
                let Some((expected, etag)) = self.known.get(&register).cloned() else {
                    return self.get(register).await;
                };
                let value = self.world.value();
                let blind = self.lies(Plant::BlindSwap);
                let matching = |call: crate::s3::Call| match blind {
                    true => call,
                    false => call.header("if-match", &etag),
                };
                self.put(register, Action::PutIfMatch(expected, value), value, matching).await
            }
            85..88 => self.upload(register).await,
            _ => self.delete(register).await,
        }
    }

    async fn get(&mut self, register: usize) -> bool {
        let begin = self.world.now();
        let call = self.world.s3.get(&self.world.bucket, register_key(register));
        let told = match self.send(call).await {
            Some(answer) if answer.status == 200 => {
                let etag = answer.header("etag").to_owned();
                let mut body = answer.body.to_vec();
                if self.lies(Plant::WrongBytes) {
                    let at = self.rng.random_range(0..body.len());
                    body[at] ^= 1;
                }
                let is_long = |value| self.world.long.lock().expect("no holder panics").contains(&value);
                match content::value(&body, is_long) {
                    Some(value) => {
                        self.known.insert(register, (value, etag));
                        Told::Found(Some(value))
                    }
                    None => {
                        let what = format!("{}: {} bytes of no value", register_key(register), body.len());
                        self.world.wrong.lock().expect("no holder panics").push(what);
                        Told::Unknown
                    }
                }
            }
            Some(answer) if answer.status == 404 => Told::Found(None),
            _ => Told::Unknown,
        };
        let told = match (told, self.before.get(&register).copied()) {
            (Told::Found(found), Some(before)) if before != found && self.lies(Plant::StaleRead) => {
                Told::Found(before)
            }
            (told, _) => told,
        };
        if let Told::Found(found) = told {
            self.before.insert(register, found);
        }
        self.record(register, Action::Get, begin, told)
    }

    async fn put(
        &mut self,
        register: usize,
        action: Action,
        value: Value,
        with: impl FnOnce(crate::s3::Call) -> crate::s3::Call,
    ) -> bool {
        let begin = self.world.now();
        if matches!(action, Action::Put(_)) && self.lies(Plant::LostWrite) {
            return self.record(register, action, begin, Told::Done);
        }
        let call = self.world.s3.put(&self.world.bucket, register_key(register), content::body(value));
        let told = match self.send(with(call)).await {
            Some(answer) if answer.status == 200 => {
                self.known.insert(register, (value, answer.header("etag").to_owned()));
                Told::Done
            }
            // With If-Match S3 says NoSuchKey where nothing is.
            Some(answer) if matches!(answer.status, 412 | 404) => Told::Refused,
            _ => Told::Unknown,
        };
        self.record(register, action, begin, told)
    }

    async fn delete(&mut self, register: usize) -> bool {
        let begin = self.world.now();
        if self.lies(Plant::DeletedBack) {
            return self.record(register, Action::Delete, begin, Told::Done);
        }
        let call = self.world.s3.delete(&self.world.bucket, register_key(register));
        let told = match self.send(call).await {
            Some(answer) if answer.status == 204 => Told::Done,
            _ => Told::Unknown,
        };
        self.record(register, Action::Delete, begin, told)
    }

    /// A PUT in parts: it is there as a whole or not at all.
    async fn upload(&mut self, register: usize) -> bool {
        let value = self.world.value();
        self.world.long.lock().expect("no holder panics").insert(value);
        let body = content::long_body(value);
        let begin = self.world.now();
        let told = self.upload_parts(register, &body).await;
        self.record(register, Action::Put(value), begin, told)
    }

    async fn upload_parts(&mut self, register: usize, body: &Bytes) -> Told {
        let key = register_key(register);
        let begun =
            self.send(self.world.s3.call("POST", &self.world.bucket, &key).query("uploads", "")).await;
        let id = begun.and_then(|answer| Some(answer.xml().ok()?.get("UploadId").to_owned()));
        let Some(id) = id.filter(|id| !id.is_empty()) else { return Told::Unknown };
        let upload = Upload::begun(&self.world.s3, &self.world.bucket, &key, &id);
        let mut parts = Vec::new();
        for (number, part) in [(1, body.slice(..PART)), (2, body.slice(PART..))] {
            match self.send(upload.put(number, part)).await {
                Some(answer) if answer.status == 200 => {
                    parts.push((number, answer.header("etag").to_owned()));
                }
                _ => return Told::Unknown,
            }
        }
        if self.world.plant == Some(Plant::HalfUpload) {
            parts.pop();
        }
        match self.send(upload.complete(&parts)).await {
            // An error may come after the head of the answer.
            Some(answer) if answer.status == 200 && answer.code().is_empty() => Told::Done,
            _ => Told::Unknown,
        }
    }

    async fn add(&mut self) -> bool {
        let (group, place, key) = {
            let mut groups = self.world.groups.lock().expect("no holder panics");
            if groups.last().is_none_or(|group| group.len() >= GROUP) {
                groups.push(Vec::new());
            }
            let group = groups.len() - 1;
            let place = groups[group].len();
            let key = format!("set/{group:05}/{place:04}");
            let begun = Change { begin: self.world.now(), end: Time::MAX, done: false };
            groups[group].push(Member { key: key.clone(), added: Some(begun), removed: None });
            (group, place, key)
        };
        let answer = self.send(self.world.s3.put(&self.world.bucket, &key, key.clone())).await;
        let done = answer.is_some_and(|answer| answer.status == 200);
        let end = self.world.now();
        let mut groups = self.world.groups.lock().expect("no holder panics");
        if let Some(added) = &mut groups[group][place].added {
            *added = Change { end, done, ..*added };
        }
        done
    }

    async fn remove(&mut self) -> bool {
        let lies = self.lies(Plant::DeletedBack);
        let (group, place, key) = {
            let mut groups = self.world.groups.lock().expect("no holder panics");
            let group = groups.len() - 1;
            let is_there =
                |member: &Member| member.removed.is_none() && member.added.is_some_and(|added| added.done);
            let there: Vec<usize> = groups[group]
                .iter()
                .enumerate()
                .filter(|(_, member)| is_there(member))
                .map(|(at, _)| at)
                .collect();
            if there.is_empty() {
                return true;
            }
            let place = there[self.rng.random_range(0..there.len())];
            let begun = Change { begin: self.world.now(), end: Time::MAX, done: false };
            groups[group][place].removed = Some(begun);
            (group, place, groups[group][place].key.clone())
        };
        let done = match lies {
            true => true,
            false => {
                let answer = self.send(self.world.s3.delete(&self.world.bucket, &key)).await;
                answer.is_some_and(|answer| answer.status == 204)
            }
        };
        let end = self.world.now();
        let mut groups = self.world.groups.lock().expect("no holder panics");
        if let Some(removed) = &mut groups[group][place].removed {
            *removed = Change { end, done, ..*removed };
        }
        done
    }

    /// All pages of a group's keys.
    async fn list(&mut self, group: usize) -> bool {
        let prefix = format!("set/{group:05}/");
        let begin = self.world.now();
        let mut keys: Vec<String> = Vec::new();
        loop {
            let mut call = self.world.s3.get(&self.world.bucket, "").query("list-type", "2");
            call = call.query("prefix", &prefix).query("max-keys", "70");
            if let Some(last) = keys.last() {
                call = call.query("start-after", last);
            }
            let answer = self.send(call).await.filter(|answer| answer.status == 200);
            let Some(page) = answer.and_then(|answer| answer.xml().ok()) else { return false };
            keys.extend(page.texts("Contents", "Key"));
            if page.get("IsTruncated") != "true" {
                break;
            }
        }
        if self.lies(Plant::Phantom) {
            keys.push(format!("{prefix}9999"));
        }
        if !keys.is_empty() && self.lies(Plant::LostKey) {
            keys.remove(0);
        }
        let listing = Listing { begin, end: self.world.now(), keys };
        self.world.listings.lock().expect("no holder panics").push((group, listing));
        true
    }
}
