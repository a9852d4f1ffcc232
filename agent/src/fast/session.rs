use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use causeway_model::connection::{Filter, Listing};
use causeway_model::fastpath::{Answer, Device, Hello, Order, Outcome, PortName, Tally, Task, VERSION};
use causeway_model::flow::Events;
use causeway_socket::{Channel, SocketError};
use rustix::event::{PollFd, PollFlags, Timespec};
use thiserror::Error;

use super::ports::Held;

/// How long one order may take. A stopped fast path costs one such wait, then the connection; it says hello again
/// when it goes on.
const PATIENCE: Duration = Duration::from_secs(2);

/// An order that was not carried out.
#[derive(Debug, Error)]
pub(super) enum OrderError {
    /// The connection is of no more use.
    #[error("the fast path: {0}")]
    Lost(#[from] SocketError),
    /// The fast path lives and said no.
    #[error("{0}")]
    Refused(String),
}

/// A living connection to a fast path that has said hello.
#[derive(Debug)]
pub(super) struct Session {
    channel: Channel,
    hello: Hello,
    number: u64,
}

impl Session {
    /// Takes up a connection: the fast path speaks first.
    pub(super) fn greet(mut channel: Channel) -> Result<Self, OrderError> {
        let (hello, _) = channel.receive::<Hello>(Some(PATIENCE))?;
        if hello.version.abs_diff(VERSION) > 1 {
            let text = format!(
                "fast path {} speaks version {} of the protocol, this agent version {VERSION}",
                hello.release, hello.version
            );
            return Err(OrderError::Refused(text));
        }
        Ok(Self { channel, hello, number: 0 })
    }

    pub(super) fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Whether the other side still holds its end. A stopped process does.
    pub(super) fn is_open(&self) -> bool {
        let mut poll = [PollFd::from_borrowed_fd(self.channel.as_fd(), PollFlags::RDHUP)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut poll, Some(&at_once))
            .is_ok_and(|_| !poll[0].revents().intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR))
    }

    /// Orders what has no answer but done.
    pub(super) fn order(&mut self, task: Task) -> Result<(), OrderError> {
        match self.ask(task, &[])? {
            (Outcome::Done, _) => Ok(()),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Has a port served; what it does less well than asked comes back.
    pub(super) fn plug(&mut self, port: PortName, held: &Held) -> Result<Vec<String>, OrderError> {
        let queues: Vec<_> = held.queues.iter().map(AsFd::as_fd).collect();
        match self.ask(Task::Plug { port, device: held.device.clone() }, &queues)? {
            (Outcome::Plugged { limits }, _) => Ok(limits),
            // So it was answered at first.
            (Outcome::Done, _) => Ok(Vec::new()),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Has the descriptors of a port shown.
    pub(super) fn show(&mut self, port: PortName) -> Result<(Device, Vec<OwnedFd>), OrderError> {
        match self.ask(Task::Show { port }, &[])? {
            (Outcome::Shown(device), queues) => Ok((device, queues)),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Has the counters read.
    pub(super) fn count(&mut self) -> Result<Tally, OrderError> {
        match self.ask(Task::Count, &[])? {
            (Outcome::Counted(tally), _) => Ok(*tally),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Has it told what became of connections.
    pub(super) fn flows(&mut self) -> Result<Events, OrderError> {
        match self.ask(Task::Flows, &[])? {
            (Outcome::Flows(events), _) => Ok(events),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Has connections listed.
    pub(super) fn connections(&mut self, filter: &Filter, most: usize) -> Result<Listing, OrderError> {
        match self.ask(Task::Connections { filter: filter.clone(), most }, &[])? {
            (Outcome::Connections(listing), _) => Ok(listing),
            (other, _) => Err(unexpected(&other)),
        }
    }

    fn ask(&mut self, task: Task, queues: &[BorrowedFd<'_>]) -> Result<(Outcome, Vec<OwnedFd>), OrderError> {
        self.number += 1;
        self.channel.send(&Order { number: self.number, what: task }, queues, PATIENCE)?;
        let (answer, queues) = self.channel.receive::<Answer>(Some(PATIENCE))?;
        match answer.what {
            _ if answer.number != self.number => {
                let text =
                    format!("the fast path answered order {} instead of {}", answer.number, self.number);
                Err(OrderError::Refused(text))
            }
            Outcome::Failed(text) => Err(OrderError::Refused(text)),
            outcome => Ok((outcome, queues)),
        }
    }
}

fn unexpected(outcome: &Outcome) -> OrderError {
    OrderError::Refused(format!("the fast path gave an answer of the wrong kind: {outcome:?}"))
}
