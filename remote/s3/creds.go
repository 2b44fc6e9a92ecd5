package s3

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"imagefs/remote"
)

const (
	// Where no metadata service is, its address may swallow packets. It is
	// one hop away, so a second is long.
	metadataDial  = time.Second
	metadataTotal = 2 * time.Second

	// refreshPause is how long to go on with credentials that are still
	// valid before trying again to renew them.
	refreshPause = 30 * time.Second
)

// newCredentials returns the credentials that c asks for. They are looked for
// when first used.
func newCredentials(c Config) *credentials.Credentials {
	switch {
	case c.Anonymous:
		return credentials.NewStatic("", "", "", credentials.SignatureAnonymous)
	case c.AccessKey != "":
		return credentials.NewStaticV4(c.AccessKey, string(c.SecretKey), string(c.SessionToken))
	}
	env := source{"the environment", &credentials.EnvAWS{}}
	file := source{"the credentials file", &credentials.FileAWSCredentials{Filename: c.CredentialsFile, Profile: c.Profile}}
	if c.Profile != "" || c.CredentialsFile != "" {
		// Named explicitly: nothing else will do, and nothing goes before it.
		return credentials.New(&chain{sources: []source{file}})
	}
	sources := []source{env, file}
	client := &http.Client{
		Timeout: metadataTotal,
		Transport: &http.Transport{
			Proxy:       nil, // link-local addresses are not for proxies
			DialContext: (&net.Dialer{Timeout: metadataDial}).DialContext,
		},
	}
	switch {
	case os.Getenv("AWS_WEB_IDENTITY_TOKEN_FILE") != "":
		// The token service is not the machine's own: it may take longer.
		sources = append(sources, source{"the web identity", &credentials.IAM{
			Client: &http.Client{Timeout: 4 * metadataTotal}, Region: c.Region,
		}})
	case cmp.Or(os.Getenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"), os.Getenv("AWS_CONTAINER_CREDENTIALS_FULL_URI")) != "":
		sources = append(sources, source{"the container", &credentials.IAM{Client: client}})
	case os.Getenv("AWS_EC2_METADATA_DISABLED") != "true":
		sources = append(sources, source{"the metadata service", &credentials.IAM{
			Client: client, Endpoint: os.Getenv("AWS_EC2_METADATA_SERVICE_ENDPOINT"),
		}})
	}
	return credentials.New(&chain{sources: sources})
}

// source is one place where credentials may be found.
type source struct {
	name     string
	provider credentials.Provider
}

// chain takes credentials from the first source that has some, and says what
// was wrong with each if none has. It is used under the lock of
// credentials.Credentials.
type chain struct {
	sources []source
	found   *source           // where last is from
	last    credentials.Value // the last ones found
	retry   time.Time         // last is good until then at least, though it could not be renewed
}

// errRefresh marks failures of a source that had credentials before.
var errRefresh = errors.New("renew credentials")

// RetrieveWithCredContext looks for credentials.
func (c *chain) RetrieveWithCredContext(cc *credentials.CredContext) (credentials.Value, error) {
	c.retry = time.Time{}
	if c.found != nil {
		v, err := c.found.get(cc)
		if err == nil {
			c.last = v
			return v, nil
		}
		// The client asks for renewal well before the end.
		if now := time.Now(); now.Before(c.last.Expiration) {
			c.retry = now.Add(min(refreshPause, c.last.Expiration.Sub(now)))
			return c.last, nil
		}
		return credentials.Value{}, fmt.Errorf("%w from %s: %w: %w", errRefresh, c.found.name, remote.ErrUnavailable, err)
	}
	var why error = noCredentials{}
	for i, s := range c.sources {
		v, err := s.get(cc)
		if err == nil {
			c.found, c.last = &c.sources[i], v
			return v, nil
		}
		// A file that is not there is said by "found" already.
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errNone) || len(c.sources) == 1 {
			why = fmt.Errorf("%w; %s: %w", why, s.name, err)
		}
	}
	return credentials.Value{}, why
}

// noCredentials is a case of remote.ErrCredentials with words of its own.
type noCredentials struct{}

func (noCredentials) Error() string        { return "no credentials found" }
func (noCredentials) Is(target error) bool { return target == remote.ErrCredentials }

var errNone = errors.New("no key and secret there")

func (s source) get(cc *credentials.CredContext) (credentials.Value, error) {
	v, err := s.provider.RetrieveWithCredContext(cc)
	if err == nil && (v.AccessKeyID == "" || v.SecretAccessKey == "") {
		err = errNone
	}
	return v, err
}

// Retrieve looks for credentials.
func (c *chain) Retrieve() (credentials.Value, error) { return c.RetrieveWithCredContext(nil) }

// IsExpired reports whether credentials have to be looked for.
func (c *chain) IsExpired() bool {
	if c.found == nil {
		return true
	}
	return c.found.provider.IsExpired() && !time.Now().Before(c.retry)
}
