package cache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/ristretto/v2"
)

const (
	kib = 1 << 10
	mib = 1 << 20

	defaultSize         = 256 * mib
	minSize             = 16 * mib
	maxDefaultInFlight  = 64 * mib
	defaultFetchTimeout = 60 * time.Second
)

// ErrClosed is the error of reads after [Cache.Close].
var ErrClosed = errors.New("cache: closed")

// Config says how much memory a Cache may use. The zero value is useful.
type Config struct {
	// Size is the bytes that cached blocks and fetches in flight may hold
	// together; see the package's section on memory. Default 256 MiB, minimum
	// 16 MiB.
	Size int64
	// InFlight is the bytes of read-ahead in flight at most, all readers
	// together. Default min(64 MiB, Size/4). More than the pool reserves for
	// read-ahead is cut to that.
	InFlight int64
	// FetchTimeout is a flight's own deadline. Default 60 s.
	FetchTimeout time.Duration
	// Whole tells of a Fetcher's error that it is not of the bytes asked for, so
	// that asking for fewer of them would only take as long again; nil for none.
	Whole func(error) bool
}

// validate fills in defaults and refuses what cannot work.
func (c Config) validate() (Config, error) {
	if c.Size == 0 {
		c.Size = defaultSize
	}
	if c.Size < minSize {
		return c, fmt.Errorf("cache: size %d is below the minimum of %d bytes", c.Size, minSize)
	}
	if c.InFlight < 0 {
		return c, fmt.Errorf("cache: negative in-flight limit %d", c.InFlight)
	}
	if c.InFlight == 0 {
		c.InFlight = min(maxDefaultInFlight, c.Size/4)
	}
	if c.FetchTimeout < 0 {
		return c, fmt.Errorf("cache: negative fetch timeout %v", c.FetchTimeout)
	}
	if c.FetchTimeout == 0 {
		c.FetchTimeout = defaultFetchTimeout
	}
	return c, nil
}

// limits are the parts of Config.Size, in bytes. The package doc has the formula.
type limits struct {
	pool, ahead, demand, swap, store, batch int64
	inFlight, spent                         int64
}

// bigPool is where streams' own batches need no more than half of the pool.
const bigPool = 96 * mib

func (c Config) limits() limits {
	var l limits
	l.pool = max(c.Size/2, min(c.Size/4*3, 48*mib))
	l.pool = min(l.pool, max(256*mib, 4*c.InFlight))
	l.swap = c.Size / 16
	l.store = c.Size - l.pool - l.swap
	l.ahead = l.pool / 3
	if l.pool >= bigPool {
		l.ahead = l.pool / 2
	}
	l.demand = l.pool - l.ahead
	l.batch = l.pool / 16
	l.inFlight = min(c.InFlight, l.ahead)
	l.spent = l.pool / 8
	return l
}

// Stats counts since New, and states the bytes held now.
type Stats struct {
	Hits             uint64 `json:"hits"`               // blocks answered from memory
	Misses           uint64 `json:"misses"`             // blocks a read had to wait for
	Joined           uint64 `json:"joined"`             // of Misses, those whose fetch was already in flight
	Fetches          uint64 `json:"fetches"`            // flights, read-ahead and those that a Tier answered included
	FetchedBytes     uint64 `json:"fetched_bytes"`      // bytes asked for by Fetches
	ReadAheadFetches uint64 `json:"read_ahead_fetches"` // of Fetches, those made ahead of the reader
	ReadAheadBytes   uint64 `json:"read_ahead_bytes"`   // of FetchedBytes, those made ahead of the reader
	FetchErrors      uint64 `json:"fetch_errors"`       // of Fetches, those that failed
	Evicted          uint64 `json:"evicted"`            // blocks dropped from the store, or refused by it
	Bytes            uint64 `json:"bytes"`              // bytes held now: pool, flights, store and its buffer
	PoolBytes        uint64 `json:"pool_bytes"`         // of Bytes, landed batches in the pool
	FlightBytes      uint64 `json:"flight_bytes"`       // of Bytes, fetches in flight
}

// Cache is the memory shared by its readers. All methods may be called
// concurrently.
type Cache struct {
	cfg    Config
	lim    limits
	ctx    context.Context // parent of every flight; ends with Close
	cancel context.CancelFunc
	serial atomic.Uint64  // of the newest reader
	wg     sync.WaitGroup // flights; added to under mu while not closed
	done   chan struct{}  // closed when the first Close is through

	store      *ristretto.Cache[uint64, *kept]
	storeBytes atomic.Int64 // held by the store and its buffer
	evicted    atomic.Uint64

	spill   sync.Mutex // serializes handing blocks to the store; guards swapped
	swapped int64      // bytes handed over since the store was last waited for

	mu        sync.Mutex // guards all below, and all readers' entries and streams
	closed    bool
	landed    sync.Cond // a flight ended, or the cache closed
	spent     list      // batches that scans have read, oldest first
	old       list      // other batches no stream is reading, oldest first
	pinned    list      // batches a stream is reading
	ahead     list      // batches fetched ahead, not reached yet
	ringBytes int64     // in the four lists
	reserved  int64     // by flights that hold, or are about to allocate, a buffer
	demand    int64     // of reserved, by demand fetches
	flyAhead  int64     // read-ahead started and not landed
	unread    int64     // fetched ahead and not reached, in flight or landed
	active    int64     // streams with unread bytes
	stats     Stats
}

// New returns an empty cache. It does no I/O; Close ends its goroutines.
func New(cfg Config) (*Cache, error) {
	cfg, err := cfg.validate()
	if err != nil {
		return nil, err
	}
	c := &Cache{cfg: cfg, lim: cfg.limits(), done: make(chan struct{})}
	c.landed.L = &c.mu
	c.store, err = ristretto.NewCache(&ristretto.Config[uint64, *kept]{
		NumCounters:        10 * cfg.Size / (64 * kib),
		MaxCost:            c.lim.store,
		BufferItems:        64,
		OnExit:             c.left,
		KeyToHash:          func(k uint64) (uint64, uint64) { return k, 0 },
		IgnoreInternalCost: true,
	})
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	c.ctx, c.cancel = context.WithCancel(context.WithValue(context.Background(), flightKey{}, true))
	return c, nil
}

// Close cancels the flights, waits for them and for every goroutine of the
// cache, and drops all blocks. Later reads fail with ErrClosed. Closing again
// does nothing and also returns after the last goroutine.
func (c *Cache) Close() error {
	c.mu.Lock()
	first := !c.closed
	c.closed = true
	c.mu.Unlock()
	if !first {
		<-c.done
		return nil
	}
	c.cancel()
	c.landed.Broadcast()
	c.wg.Wait()
	c.store.Close() // nobody uses it any more: flights are over, reads look at closed first
	c.mu.Lock()
	for _, l := range []*list{&c.spent, &c.old, &c.pinned, &c.ahead} {
		for l.front != nil {
			c.drop(l.front)
		}
	}
	c.mu.Unlock()
	close(c.done)
	return nil
}

// Release gives the memory of all blocks back: later reads fetch what they need.
// Fetches in flight go on, and whoever holds a block keeps it.
func (c *Cache) Release() {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	for _, l := range []*list{&c.spent, &c.old, &c.pinned, &c.ahead} {
		for l.front != nil {
			c.drop(l.front)
		}
	}
	c.wg.Add(1) // Close waits until the store is no longer used here
	c.mu.Unlock()
	defer c.wg.Done()
	c.spill.Lock()
	defer c.spill.Unlock()
	c.store.Clear()
	c.swapped = 0
}

// Stats returns the counters. It may be called at any time.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	s := c.stats
	s.PoolBytes = uint64(c.ringBytes)
	s.FlightBytes = uint64(c.reserved)
	s.Bytes = uint64(c.ringBytes + c.reserved + c.storeBytes.Load())
	c.mu.Unlock()
	s.Evicted = c.evicted.Load()
	return s
}

// kept is one block in the store.
type kept struct {
	r     *Reader
	index int64
	data  []byte
}

// left is the store's word that a block is gone: evicted, refused, replaced or
// deleted.
func (c *Cache) left(k *kept) {
	if k == nil {
		return
	}
	c.storeBytes.Add(-int64(len(k.data)))
	c.evicted.Add(1)
	k.r.stored.Lock()
	delete(k.r.inStore, k.index)
	k.r.stored.Unlock()
}

// keep hands the blocks of batches that left the pool to the store. The caller
// holds no lock, and has not yet allocated the memory they made room for.
func (c *Cache) keep(batches []*batch) {
	if len(batches) == 0 {
		return
	}
	c.spill.Lock()
	defer c.spill.Unlock()
	for i, b := range batches {
		for n := range int64(b.n) {
			data := b.block(b.first + n)
			if b.n > 1 {
				// A sub-slice would hold the whole batch in memory for one block.
				data = append([]byte(nil), data...)
			}
			c.keepBlock(&kept{r: b.r, index: b.first + n, data: data})
		}
		batches[i] = nil
	}
}

// keepBlock hands one block to the store. The store takes it into a buffer of
// 32768 items whatever their size and weighs it later, so waiting for it now and
// then is what bounds the memory. Callers hold Cache.spill.
func (c *Cache) keepBlock(k *kept) {
	r := k.r
	r.stored.Lock()
	// The same block may come twice, when it was fetched again on its way here.
	skip := r.gone || r.inStore[k.index] != nil
	if !skip {
		r.inStore[k.index] = k
	}
	r.stored.Unlock()
	if skip {
		return
	}
	size := int64(len(k.data))
	if c.swapped+size > c.lim.swap {
		c.store.Wait()
		c.swapped = 0
	}
	c.swapped += size
	c.storeBytes.Add(size)
	if !c.store.Set(r.key(k.index), k, size) {
		c.left(k)
	}
}
