package s3

import (
	"context"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/signer"
)

// Stats counts what a store did since it was opened.
type Stats struct {
	Requests      uint64 `json:"requests"`       // HTTP requests sent
	Bytes         uint64 `json:"bytes"`          // of objects, received and handed on
	BytesUploaded uint64 `json:"bytes_uploaded"` // of objects, sent, repetitions included
	Retries       uint64 `json:"retries"`        // attempts after the first one of an operation
	Errors        uint64 `json:"errors"`         // attempts that failed
}

type counters struct {
	requests, bytes, uploaded, retries, errors atomic.Uint64
}

// Stats returns the counts so far.
func (s *Store) Stats() Stats {
	return Stats{
		Requests:      s.stats.requests.Load(),
		Bytes:         s.stats.bytes.Load(),
		BytesUploaded: s.stats.uploaded.Load(),
		Retries:       s.stats.retries.Load(),
		Errors:        s.stats.errors.Load(),
	}
}

// newTransport returns a transport for 16 to 32 requests at a time to one
// host. All of these connections are worth keeping: net/http keeps 2.
func newTransport() *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           dial(&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}),
		TLSHandshakeTimeout:   5 * time.Second,
		MaxIdleConns:          128,
		MaxIdleConnsPerHost:   64,
		IdleConnTimeout:       time.Minute,
		ExpectContinueTimeout: 5 * time.Second,
		ReadBufferSize:        64 << 10,
		WriteBufferSize:       64 << 10,
		DisableCompression:    true, // stored bytes are wanted as they are
	}
}

// counting is the transport of the client: it counts requests, takes the
// client's wrapping off a body, which hides what it is from the connection, and
// sends If-Match without quotes where that was asked for.
type counting struct {
	next  http.RoundTripper
	creds *credentials.Credentials
	stats *counters
}

// bodyOf is the context's key for the *sending of a request.
type bodyOf struct{}

// bareMatch marks the context of a request whose If-Match is to have no quotes.
type bareMatch struct{}

// RoundTrip sends one request.
func (c *counting) RoundTrip(r *http.Request) (*http.Response, error) {
	c.stats.requests.Add(1)
	if b, ok := r.Context().Value(bodyOf{}).(*sending); ok && r.Body != nil && r.Body != http.NoBody {
		r = r.WithContext(r.Context()) // a copy: requests are not to be modified
		r.Body = b
	}
	if r.Context().Value(bareMatch{}) != nil && r.Header.Get("If-Match") != "" {
		var err error
		if r, err = c.unquote(r); err != nil {
			return nil, err
		}
	}
	return c.next.RoundTrip(r)
}

// unquote takes the quotes away that the client puts around an If-Match, and
// signs the request again. Ceph 16 compares with the quotes and never finds
// its own ETags equal.
func (c *counting) unquote(r *http.Request) (*http.Request, error) {
	v, err := c.creds.GetWithContext(&credentials.CredContext{Context: r.Context()})
	if err != nil {
		return nil, err
	}
	r = r.Clone(r.Context())
	r.Header.Set("If-Match", strings.Trim(r.Header.Get("If-Match"), `"`))
	auth := r.Header.Get("Authorization")
	if auth == "" {
		return r, nil
	}
	// Credential=KEY/DATE/REGION/s3/aws4_request
	scope := strings.Split(auth, "/")
	if len(scope) < 5 {
		return r, nil
	}
	r.Header.Del("Authorization")
	return signer.SignV4(*r, v.AccessKeyID, v.SecretAccessKey, v.SessionToken, scope[len(scope)-3]), nil
}

// withBareMatch returns a context for requests with a bare If-Match.
func withBareMatch(ctx context.Context) context.Context {
	return context.WithValue(ctx, bareMatch{}, true)
}
