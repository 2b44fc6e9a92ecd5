package s3

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"imagefs/remote"
)

var _ remote.Store = (*Store)(nil)

// probeBudget bounds how long Open waits for a server: who starts a mount
// wants to know soon.
const probeBudget = 8 * time.Second

// Store is a folder of a bucket. All methods may be called concurrently.
type Store struct {
	client *minio.Core
	creds  *credentials.Credentials
	idle   interface{ CloseIdleConnections() } // nil if the transport is not ours

	bucket string
	prefix string // "" or ends in a slash
	region string // "" if the client finds out
	budget time.Duration
	stall  time.Duration

	// Of uploads, in bytes: the most in one request where parts would do,
	// and the least of a part. Constants but for tests.
	maxSingle, minPart int64

	bare    atomic.Bool // the server wants If-Match without quotes
	opaque  atomic.Bool // ETags of parts are not MD5s, and Content-MD5 is checked
	digests checking    // Content-MD5s
	sums    checking    // CRC-32Cs
	stats   counters
}

// Open opens a folder of a bucket and asks for one key in it, to see that the
// bucket exists and may be listed. The error is one line and tells apart:
// remote.ErrNoBucket, remote.ErrCredentials (refused, or none found),
// fs.ErrPermission and, within about ten seconds, remote.ErrUnavailable.
func Open(ctx context.Context, c Config) (*Store, error) {
	s, err := open(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("open bucket %q: %w", c.Bucket, err)
	}
	return s, nil
}

func open(ctx context.Context, c Config) (*Store, error) {
	c, err := c.complete()
	if err != nil {
		return nil, err
	}
	host, secure, err := parseEndpoint(c.Endpoint)
	if err != nil {
		return nil, err
	}
	s := &Store{
		bucket: c.Bucket, region: c.Region,
		budget: c.Budget, stall: c.Stall,
		maxSingle: maxSingle, minPart: minPart,
		creds: newCredentials(c),
	}
	if c.Prefix != "" {
		s.prefix = c.Prefix + "/"
	}
	transport := c.Transport
	if transport == nil {
		t := newTransport()
		transport, s.idle = t, t
	}
	s.client, err = minio.NewCore(host, &minio.Options{
		Creds:        s.creds,
		Secure:       secure,
		Region:       c.Region,
		Transport:    &counting{next: transport, creds: s.creds, stats: &s.stats},
		BucketLookup: lookup(c.PathStyle),
		MaxRetries:   1, // retries are ours
	})
	if err != nil {
		return nil, fmt.Errorf("endpoint %q: %w", c.Endpoint, err)
	}
	// Before the first request, whose patience a metadata service that does
	// not exist would use up.
	if _, err := s.creds.GetWithContext(&credentials.CredContext{Context: ctx}); err != nil {
		return nil, translate(err)
	}
	if err := s.probe(ctx); err != nil {
		s.Close()
		return nil, fmt.Errorf("endpoint %q: %w", c.Endpoint, err)
	}
	return s, nil
}

func lookup(style string) minio.BucketLookupType {
	switch style {
	case "path":
		return minio.BucketLookupPath
	case "virtual":
		return minio.BucketLookupDNS
	}
	return minio.BucketLookupAuto
}

// probe lists one key.
func (s *Store) probe(ctx context.Context) error {
	return s.within(ctx, min(s.budget, probeBudget), func(ctx context.Context, _ *try) error {
		for o := range s.client.ListObjectsIter(ctx, s.bucket, minio.ListObjectsOptions{Prefix: s.prefix, MaxKeys: 1}) {
			return o.Err
		}
		return ctx.Err()
	})
}

// Close closes idle connections. The store is not to be used afterwards.
func (s *Store) Close() error {
	if s.idle != nil {
		s.idle.CloseIdleConnections()
	}
	return nil
}

// renew looks for credentials again and reports whether it found others.
func (s *Store) renew() bool {
	old, _ := s.creds.GetWithContext(nil)
	s.creds.Expire()
	v, err := s.creds.GetWithContext(nil)
	return err == nil && (v.AccessKeyID != old.AccessKeyID || v.SecretAccessKey != old.SecretAccessKey || v.SessionToken != old.SessionToken)
}

// Stat asks for the current version of key.
func (s *Store) Stat(ctx context.Context, key string) (remote.Object, error) {
	if err := remote.CheckKey(key); err != nil {
		return remote.Object{}, fmt.Errorf("stat: %w", err)
	}
	o, err := s.stat(ctx, key)
	if err != nil {
		return remote.Object{}, fmt.Errorf("stat %q: %w", key, err)
	}
	return o, nil
}

func (s *Store) stat(ctx context.Context, key string) (remote.Object, error) {
	info, err := s.head(ctx, key)
	if err != nil {
		return remote.Object{}, err
	}
	return object(key, info), nil
}

func (s *Store) head(ctx context.Context, key string) (minio.ObjectInfo, error) {
	return s.headWithin(ctx, s.budget, key)
}

func (s *Store) headWithin(ctx context.Context, budget time.Duration, key string) (info minio.ObjectInfo, err error) {
	err = s.within(ctx, budget, func(ctx context.Context, t *try) error {
		var err error
		info, err = s.client.StatObject(ctx, s.bucket, s.prefix+key, minio.StatObjectOptions{})
		switch status(err) {
		case http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound:
			t.alive()
			return s.explain(ctx, key, err)
		}
		return err
	})
	return info, err
}

// explain finds out what a refusal of HEAD means. Answers to HEAD have no body
// and so no code, and 404 may mean a missing bucket or an unknown access key.
func (s *Store) explain(ctx context.Context, key string, err error) error {
	opts := minio.GetObjectOptions{}
	if err := opts.SetRange(0, 0); err != nil {
		return err
	}
	body, _, _, gerr := s.client.GetObject(ctx, s.bucket, s.prefix+key, opts)
	if status(gerr) == http.StatusRequestedRangeNotSatisfiable || gerr == nil {
		if gerr == nil {
			body.Close()
		}
		if status(err) == http.StatusNotFound {
			// It came into being between the two requests.
			return errors.New("object appeared")
		}
		return err
	}
	return gerr
}

// object describes a version. Listings tell milliseconds, other answers only
// seconds; the same version is to have one time.
func object(key string, info minio.ObjectInfo) remote.Object {
	return remote.Object{Key: key, ETag: info.ETag, Size: info.Size, ModTime: info.LastModified.Truncate(time.Second)}
}

// List yields the objects whose keys begin with prefix and have no "/" after
// it. Keys that remote.CheckKey refuses are left out. The whole listing is
// fetched before the first is yielded, a thousand entries a request.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[remote.Object, error] {
	return func(yield func(remote.Object, error) bool) {
		objects, err := s.list(ctx, prefix)
		if err != nil {
			yield(remote.Object{}, fmt.Errorf("list %q: %w", prefix, err))
			return
		}
		for _, o := range objects {
			if err := ctx.Err(); err != nil {
				yield(remote.Object{}, fmt.Errorf("list %q: %w", prefix, err))
				return
			}
			if !yield(o, nil) {
				return
			}
		}
	}
}

func (s *Store) list(ctx context.Context, prefix string) ([]remote.Object, error) {
	if err := remote.CheckPrefix(prefix); err != nil {
		return nil, err
	}
	var objects []remote.Object
	last := "" // of the keys heard; a new attempt goes on after it
	err := s.do(ctx, func(ctx context.Context, t *try) error {
		after := last
		opts := minio.ListObjectsOptions{Prefix: s.prefix + prefix, StartAfter: after, FetchOwner: new(bool)}
		for info := range s.client.ListObjectsIter(ctx, s.bucket, opts) {
			if info.Err != nil {
				return info.Err
			}
			t.progressed()
			key, ok := strings.CutPrefix(info.Key, s.prefix)
			// Some servers do not know start-after, and folders follow
			// the keys of their page.
			if !ok || info.Key <= after || strings.HasSuffix(key, "/") {
				continue
			}
			last = max(last, info.Key)
			if remote.CheckKey(key) == nil {
				objects = append(objects, object(key, info))
			}
		}
		return ctx.Err() // the iterator ends in silence when cancelled
	})
	if err != nil {
		return nil, err
	}
	// Amazon's directory buckets and some other servers do not sort.
	slices.SortFunc(objects, func(a, b remote.Object) int { return cmp.Compare(a.Key, b.Key) })
	return objects, nil
}

// Delete removes key.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := remote.CheckKey(key); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	err := s.do(ctx, func(ctx context.Context, _ *try) error {
		err := s.client.RemoveObject(ctx, s.bucket, s.prefix+key, minio.RemoveObjectOptions{})
		if code(err) == "NoSuchKey" {
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("delete %q: %w", key, err)
	}
	return nil
}
