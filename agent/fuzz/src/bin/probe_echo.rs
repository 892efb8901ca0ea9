//! ICMP echo replies: one that is read as ours is the answer to what we would write.
#![no_main]

use overlaywatch::probe::echo::Form;

/// The epoch that the seeds were written with.
const EPOCH: u64 = 0x0102_0304_0506_0708;

libfuzzer_sys::fuzz_target!(|packet: &[u8]| {
    for (v6, raw) in [(false, false), (false, true), (true, false), (true, true)] {
        let form = Form::new(v6, raw, EPOCH);
        let Some(reply) = form.read(packet) else { continue };
        let mut request = Vec::new();
        form.write(reply.seq, reply.sent_at, 0, &mut request);
        // All but the type, the checksum and a ping socket's identifier comes back.
        let data = &request[8..];
        assert!(packet.windows(data.len()).any(|part| part == data));
    }
});
