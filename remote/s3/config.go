package s3

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/minio/minio-go/v7/pkg/s3utils"

	"imagefs/remote"
)

// Config says which bucket to open, where and as whom. Only Bucket is needed.
type Config struct {
	Bucket string
	Prefix string // folder in the bucket that keys are relative to; "" is its top

	// Endpoint is the server: a host with an optional port, behind
	// https:// or http:// (https if neither). Default: AWS_ENDPOINT_URL_S3,
	// AWS_ENDPOINT_URL, else Amazon.
	Endpoint string
	// Region is signed into requests. Default: AWS_REGION,
	// AWS_DEFAULT_REGION, else what the server says it is.
	Region string
	// PathStyle says where the bucket's name stands in addresses: "path",
	// "virtual" (in the host name) or "auto", the default: virtual on
	// Amazon and other servers known to want it.
	PathStyle string

	// AccessKey and SecretKey are used instead of looking for credentials;
	// SessionToken goes with temporary ones.
	AccessKey               string
	SecretKey, SessionToken Secret
	Profile                 string // of the credentials file; default: AWS_PROFILE, else "default"
	CredentialsFile         string // default: AWS_SHARED_CREDENTIALS_FILE, else ~/.aws/credentials with ~/.aws/config
	Anonymous               bool   // sign nothing

	Budget time.Duration // longest an operation goes on without progress; default 30 s
	Stall  time.Duration // longest a connection may be silent before the request is repeated; default 10 s

	Transport http.RoundTripper // for tests; default: one with many connections to one host
}

// Secret is a string that prints as stars.
type Secret string

// String returns stars.
func (Secret) String() string { return "***" }

// GoString returns stars.
func (Secret) GoString() string { return `"***"` }

const (
	defaultBudget = 30 * time.Second
	defaultStall  = 10 * time.Second
	amazon        = "https://s3.amazonaws.com"
)

// ParseURL splits a URL of the form s3://bucket/prefix. The prefix is without
// slashes at its ends.
func ParseURL(s string) (bucket, prefix string, err error) {
	// Not url.Parse: a prefix may hold what is special in URLs.
	rest, ok := strings.CutPrefix(s, "s3://")
	if !ok {
		return "", "", fmt.Errorf("url %q: does not begin with s3://", s)
	}
	bucket, prefix, _ = strings.Cut(rest, "/")
	prefix = strings.Trim(prefix, "/")
	if bucket == "" || strings.ContainsAny(bucket, "@:?# ") {
		return "", "", fmt.Errorf("url %q: %q is no bucket name", s, bucket)
	}
	if prefix != "" {
		if err := remote.CheckKey(prefix); err != nil {
			return "", "", fmt.Errorf("url %q: %w", s, err)
		}
	}
	return bucket, prefix, nil
}

// complete fills in defaults and refuses what makes no sense.
func (c Config) complete() (Config, error) {
	if c.Bucket == "" {
		return c, errors.New("no bucket is named")
	}
	// The client would say so at each request, and be asked again and again.
	if err := s3utils.CheckValidBucketName(c.Bucket); err != nil {
		return c, fmt.Errorf("no bucket can be named %q: %w", c.Bucket, err)
	}
	if c.Prefix = strings.Trim(c.Prefix, "/"); c.Prefix != "" {
		if err := remote.CheckKey(c.Prefix); err != nil {
			return c, fmt.Errorf("prefix: %w", err)
		}
	}
	switch c.PathStyle = cmp.Or(c.PathStyle, "auto"); c.PathStyle {
	case "auto", "path", "virtual":
	default:
		return c, fmt.Errorf("path style %q: want auto, path or virtual", c.PathStyle)
	}
	if (c.AccessKey == "") != (c.SecretKey == "") {
		return c, errors.New("access key and secret key need each other")
	}
	if c.Budget < 0 || c.Stall < 0 {
		return c, fmt.Errorf("budget %v and stall %v: negative", c.Budget, c.Stall)
	}
	c.Budget = cmp.Or(c.Budget, defaultBudget)
	c.Stall = cmp.Or(c.Stall, defaultStall)
	c.Endpoint = cmp.Or(c.Endpoint, os.Getenv("AWS_ENDPOINT_URL_S3"), os.Getenv("AWS_ENDPOINT_URL"), amazon)
	c.Region = cmp.Or(c.Region, os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION"))
	return c, nil
}

// parseEndpoint splits an endpoint into what a client dials and whether it
// speaks TLS.
func parseEndpoint(s string) (host string, secure bool, err error) {
	full := s
	if !strings.Contains(s, "://") {
		full = "https://" + s
	}
	u, err := url.Parse(full)
	switch {
	case err != nil:
		return "", false, fmt.Errorf("endpoint %q: not a URL", s)
	case u.Scheme != "http" && u.Scheme != "https":
		return "", false, fmt.Errorf("endpoint %q: scheme %q: want http or https", s, u.Scheme)
	case u.Hostname() == "":
		return "", false, fmt.Errorf("endpoint %q: no host", s)
	case u.User != nil:
		return "", false, errors.New("endpoint: credentials do not belong in it")
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return "", false, fmt.Errorf("endpoint %q: want a host and port only", s)
	}
	return u.Host, u.Scheme == "https", nil
}

// Identity names the store among all: the service that answers, the bucket and
// the folder in it.
func (s *Store) Identity() string {
	return strings.TrimSuffix(s.client.EndpointURL().String(), "/") + "/" + s.bucket + "/" + s.prefix
}
