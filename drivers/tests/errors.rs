//! Errors as a program passes them on, and as a person reads them.

use std::error::Error as StdError;

use ringfence_drivers::block::{Request, RequestError};
use ringfence_drivers::virtio::{BufferList, Error, QueueError, Ticket};
use ringfence_memory::{DmaError, VolatileError};

type RefusedRequest = (RequestError, Request);
type RefusedList = (QueueError, BufferList);

/// What a caller writes who does not need the buffer any more.
fn pass_on(submitted: Result<Ticket, RefusedRequest>) -> Result<Ticket, Error> {
    Ok(submitted?)
}

#[test]
fn what_is_refused_passes_through_a_question_mark() {
    assert_eq!(pass_on(Err((RequestError::Full, Request::Flush))), Err(Error::Request(RequestError::Full)));
    let request = || -> Result<Ticket, RequestError> { Err((RequestError::ReadOnly, Request::Flush))? };
    assert_eq!(request(), Err(RequestError::ReadOnly));
    let list = || -> Result<Ticket, RefusedList> { Err((QueueError::Full, BufferList::default())) };
    assert_eq!((|| Ok(list()?))(), Err::<Ticket, _>(QueueError::Full));
    assert_eq!((|| Ok(list()?))(), Err::<Ticket, _>(Error::Queue(QueueError::Full)));
}

#[test]
fn a_copy_that_does_not_fit_is_an_error_of_the_driver() {
    let copy = || -> Result<(), Error> { Ok(Err(VolatileError::OutOfBounds)?) };
    assert_eq!(copy(), Err(Error::Dma(DmaError::Access(VolatileError::OutOfBounds))));
}

#[test]
fn errors_are_sentences_down_to_their_cause() {
    let errors: [(Box<dyn StdError>, _); 4] = [
        (
            Box::new(Error::Queue(QueueError::Broken)),
            "a queue failed: the device broke the rules of the ring",
        ),
        (Box::new(Error::Dma(DmaError::BadLength)), "a length of no bytes, or too many"),
        (Box::new(Error::Request(RequestError::BadStatus(7))), "a request failed: the disk reports status 7"),
        (Box::new(RequestError::OutOfRange), "beyond the end of the disk"),
    ];
    for (error, text) in errors {
        assert!(error.to_string().starts_with(text), "{error}");
    }
}
