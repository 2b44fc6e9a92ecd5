// Package cache keeps aligned blocks of immutable things in memory.
//
// It owns blocks, shared fetches and read-ahead. It knows nothing of what the
// bytes mean or where they come from: a [Fetcher] fills ranges, a [Reader]
// answers reads of one thing, and one [Cache] holds the memory of all readers.
//
// # Terms
//
//   - Block: an aligned piece of one thing, the unit of lookup. Only the last
//     block of a thing is shorter than [ReaderConfig.Block].
//   - Batch: one or several neighbouring blocks filled by one ReadRange call.
//   - Flight: a batch on its way. Every block of it has its own entry, so a read
//     of any of them joins.
//   - Pool: the newest batches, in flight or landed. Batches leave it whole.
//   - Store: the policy cache (ristretto) behind the pool. A block is in the pool
//     or in the store, never in both.
//   - Stream: a place where one reader is being read sequentially.
//   - Tier: where one reader's blocks are kept beyond memory, such as on disk.
//
// # Contract
//
// A published block is never written again. There are no reference counts and
// no buffer pools: eviction drops a pointer, and whoever still holds a slice
// keeps it valid. A lookup goes through pool, store and flights in this order;
// a hit costs one short lock, no goroutine, no channel and no allocation, and
// nothing is locked while bytes are copied.
//
// A flight runs detached from every request, under [Config.FetchTimeout]. A
// waiter whose context ends leaves with the context's error and the flight goes
// on for the others. A failed flight caches nothing. Its error goes to all of
// its waiters, with one refinement: when several blocks shared the failed fetch,
// or when it was read-ahead that got cancelled, each waiter fetches the one block
// it needs by itself, so that a bad block does not spoil its neighbours. A panic
// in a Fetcher becomes an error. Errors wrap what the Fetcher returned.
//
// A reader's [Tier] is part of its flights: they ask it first, and give it what was
// fetched, so that waiters share its answers as they share fetches. A flight that
// it answers whole calls no Fetcher.
//
// # Read-ahead
//
// A read that continues where an earlier one ended is sequential; once a stream
// is established, requests arriving slightly out of order still belong to it. The
// window starts at one block and is four times what the stream has read so far,
// up to Span times Parallel, and so doubles with each quantum read without ever
// fetching much more than was asked for. A random read fetches its own blocks
// only. Read-ahead never delays a demand fetch: it has its own budget and is left
// out when that is used up.
//
// A thing that lies in parts in another one, as a disk does in an image file, is
// read ahead in its own order ([Reader.Placed]): a guest writes here and there, and
// what is next for the reader may be anywhere in the file. What the window covers is
// fetched in the order of the file, so that neighbours still come together, and the
// parts of one read are fetched at once.
//
// A sequential read of a thing larger than the cache fetches each byte exactly
// once, also with several readers at a time, because batches leave the pool in
// this order: first those that scans have read, then others no stream is reading,
// oldest first; then those a stream is in the middle of; last those fetched ahead
// and not reached yet. The first two kinds exist whenever the streams being read
// fit, which is so for eight streams with blocks of up to 1/16 of Size.
//
// A stream that has read more than [ReaderConfig.Scan] is a scan. What it has read
// leaves the pool soon and never gets to the store: it would drive out what is read
// often, cost a copy, and memory that was never touched before, which is dear on
// virtual machines.
//
// # Memory
//
//	pool  = Size/2, at least min(3/4 Size, 48 MiB), at most max(256 MiB, 4 InFlight)
//	swap  = Size/16, blocks handed to the store and not yet weighed by it
//	store = Size - pool - swap
//	ahead = pool/3, pool/2 from 96 MiB: fetched ahead and not reached, in flight or landed
//	batch = at most max(Block, pool/16)
//
// Landed and flying batches together stay within the pool: room is made before a
// buffer is allocated. Demand fetches beyond pool - ahead wait for other demand
// fetches, except those a Fetcher makes while it is itself serving a flight (it
// must pass on the context it was given): these never wait, so that a decoding
// Fetcher over another Reader cannot block itself, and are the one way to pass the
// pool, by what they fetch. A block larger than swap adds its excess while it is
// handed over, and one larger than pool - ahead is fetched alone. Beside the bytes
// of blocks, the store's counters take about 30 bytes for each 64 KiB of Size.
//
// # Locks
//
// Cache.mu guards everything but the store. Order: Cache.spill, then Cache.mu or
// Reader.stored; the store's own locks come after Cache.mu and before Reader.stored.
// The store is only waited for while holding Cache.spill alone.
package cache
