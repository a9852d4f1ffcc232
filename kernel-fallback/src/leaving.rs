//! Links on their way out: out of use and out of the way at once, deleted behind it.
//!
//! The kernel takes 20 ms and more to delete a veth, or to move it to another namespace, and hardly longer for a hundred of
//! them at once. A link that is down, renamed and without a use hurts nobody meanwhile, and its name is free.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use nix::errno::Errno;

use crate::conntrack;
use crate::error::KernelError;
use crate::install::{GONE, unless};
use crate::namespace::within;
use crate::netlink::Netlink;
use crate::observe;

/// What their names begin with.
pub(crate) const LEAVING_PREFIX: &str = "cwx";
/// The kernel puts the first number there that is free.
const TEMPLATE: &str = "cwx%d";
/// The group of links on the node that can be deleted; links of others have other groups, most of them none.
const GROUP: u32 = 51717;
/// How long more of them are waited for …
const GATHER: Duration = Duration::from_millis(200);
/// … and how long, at most, while other links are made: deleting holds up whoever makes one. Less than a second in all, whatever
/// comes.
const PATIENCE: Duration = Duration::from_millis(700);
/// So long after the last one nobody is making any.
const QUIET: Duration = Duration::from_millis(50);

/// Whether a link is on its way out.
pub(crate) fn is_leaving(name: &str) -> bool {
    name.starts_with(LEAVING_PREFIX)
}

/// Deletes behind everybody's back what was taken out of use. What it still has when it is dropped is deleted all the same.
#[derive(Clone, Debug)]
pub struct Reaper {
    jobs: Sender<Job>,
    /// When links were last made.
    made: Arc<Mutex<Option<Instant>>>,
}

#[derive(Debug)]
enum Job {
    /// Links of the group, in the namespace of the reaper.
    Group,
    /// Descriptors with which a device goes.
    Close(Vec<OwnedFd>),
    /// A link of another namespace.
    Delete(OwnedFd, u32),
    /// What connection tracking knows of addresses whose pods have gone by now.
    Forget(BTreeSet<IpAddr>, SystemTime),
}

impl Reaper {
    /// Begins, in the network namespace of the calling thread.
    pub fn start() -> Result<Self, KernelError> {
        let (jobs, due) = channel();
        let netlink = Netlink::route()?;
        let made = Arc::default();
        let reaper = thread::Builder::new().name("reaper".into());
        let spawned = reaper.spawn({
            let made = Arc::clone(&made);
            move || reap(netlink, &due, &made)
        });
        spawned.map_err(KernelError::io("starting the reaper's thread"))?;
        Ok(Self { jobs, made })
    }

    /// Links are being made: what can wait is deleted later.
    pub(crate) fn make_way(&self) {
        *lock(&self.made) = Some(Instant::now());
    }

    /// Closes descriptors: the kernel takes its time over those whose device goes with them.
    pub fn close(&self, descriptors: Vec<OwnedFd>) {
        self.hand(Job::Close(descriptors));
    }

    /// Deletes a link, by its index in another namespace.
    pub fn delete(&self, netns: OwnedFd, index: u32) {
        self.hand(Job::Delete(netns, index));
    }

    /// Has flows forgotten of addresses whose pods have gone, so that nobody inherits them.
    pub(crate) fn forget(&self, addresses: BTreeSet<IpAddr>) {
        self.hand(Job::Forget(addresses, SystemTime::now()));
    }

    pub(crate) fn delete_group(&self) {
        self.hand(Job::Group);
    }

    fn hand(&self, job: Job) {
        // The thread ends after the last sender only.
        drop(self.jobs.send(job));
    }
}

fn lock(made: &Mutex<Option<Instant>>) -> MutexGuard<'_, Option<Instant>> {
    made.lock().unwrap_or_else(PoisonError::into_inner)
}

fn reap(mut netlink: Netlink, due: &Receiver<Job>, made: &Mutex<Option<Instant>>) {
    while let Ok(first) = due.recv() {
        let began = Instant::now();
        let (mut until, mut group, mut gone) = (began + GATHER, false, BTreeMap::new());
        let mut job = Ok(first);
        loop {
            match job {
                Ok(Job::Group) => group = true,
                Ok(Job::Close(descriptors)) => drop(descriptors),
                Ok(Job::Delete(netns, index)) => delete(&netns, index),
                Ok(Job::Forget(addresses, when)) => gone.extend(addresses.into_iter().map(|a| (a, when))),
                Err(RecvTimeoutError::Timeout) => {
                    forget(&mut gone);
                    let last = lock(made).filter(|_| group);
                    match last.and_then(|last| put_off(began, last, Instant::now())) {
                        Some(later) => until = later,
                        None => break,
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
            job = due.recv_timeout(until.saturating_duration_since(Instant::now()));
        }
        if group && let Err(error) = remove_group(&mut netlink) {
            // The next look at the node finds them.
            tracing::warn!(%error, "links on their way out are still there");
        }
        forget(&mut gone);
    }
}

/// Nobody shall inherit a flow: that does not wait.
fn forget(gone: &mut BTreeMap<IpAddr, SystemTime>) {
    let gone = std::mem::take(gone);
    if !gone.is_empty() {
        conntrack::forget_pods(&gone);
    }
}

/// Until when links wait that have waited since a time, if others were made last at another.
fn put_off(began: Instant, made: Instant, now: Instant) -> Option<Instant> {
    let later = (made + QUIET).min(began + PATIENCE);
    (later > now).then_some(later)
}

fn delete(netns: &OwnedFd, index: u32) {
    let deleted = within(netns.as_fd(), || {
        let mut message = LinkMessage::default();
        message.header.index = index;
        Netlink::route()?
            .request(RouteNetlinkMessage::DelLink(message), 0, || format!("removing link {index}"))
    });
    if let Err(error) = unless(deleted.and_then(|deleted| deleted), &GONE) {
        tracing::warn!(%error, "a link on its way out is still there");
    }
}

/// All links of the group at once.
fn remove_group(netlink: &mut Netlink) -> Result<(), KernelError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::Group(GROUP));
    let doing = || "removing links on their way out".to_owned();
    unless(netlink.request(RouteNetlinkMessage::DelLink(message), 0, doing), &GONE)
}

/// Takes a pair of links out of use: down, so that nothing passes and every route over them is gone, and out of the way of
/// both names. The pod's end is told by its index and only where it is the other end; it may be called anything.
pub(crate) fn dismiss_pair(
    netlink: &mut Netlink,
    name: &str,
    netns: Option<OwnedFd>,
) -> Result<bool, KernelError> {
    let Some(link) = observe::link(netlink, name)? else { return Ok(false) };
    if let Some((netns, peer)) = netns.zip(link.peer) {
        within(netns.as_fd(), || {
            let mut netlink = Netlink::route()?;
            let links = observe::links(&mut netlink)?;
            match links.values().find(|other| other.index == peer && other.peer == Some(link.index)) {
                Some(other) => dismiss(&mut netlink, other.index, None),
                None => Ok(()),
            }
        })??;
    }
    dismiss(netlink, link.index, Some(GROUP))?;
    Ok(true)
}

/// Takes a TAP out of use in the namespace of this thread; returns its index, if it is there and is one.
pub fn dismiss_tap(name: &str) -> Result<Option<u32>, KernelError> {
    let mut netlink = Netlink::route()?;
    let Some(link) = observe::link(&mut netlink, name)?.filter(observe::Link::is_tap) else {
        return Ok(None);
    };
    dismiss(&mut netlink, link.index, None)?;
    Ok(Some(link.index))
}

fn dismiss(netlink: &mut Netlink, index: u32, group: Option<u32>) -> Result<(), KernelError> {
    let doing = || format!("taking link {index} out of use");
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.change_mask = LinkFlags::Up;
    let down = netlink.request(RouteNetlinkMessage::SetLink(message), 0, doing);
    unless(down, &[Errno::ENODEV])?;
    // Only once it is down: older kernels rename no other.
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::IfName(TEMPLATE.to_owned()));
    message.attributes.extend(group.map(LinkAttribute::Group));
    unless(netlink.request(RouteNetlinkMessage::SetLink(message), 0, doing), &[Errno::ENODEV])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_wait_while_others_are_made_and_never_for_a_second() {
        let began = Instant::now();
        let at = |millis| began + Duration::from_millis(millis);
        assert_eq!(put_off(began, at(100), at(200)), None, "it has been quiet");
        assert_eq!(put_off(began, at(190), at(200)), Some(at(240)));
        assert_eq!(put_off(began, at(690), at(691)), Some(at(700)));
        assert_eq!(put_off(began, at(700), at(701)), None, "whatever is made");
    }
}
