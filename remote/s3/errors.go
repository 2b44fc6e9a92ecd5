package s3

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"

	"github.com/minio/minio-go/v7"

	"imagefs/remote"
)

// verdict is what an error means.
type verdict struct {
	err   error // the sentinel it stands for, or nil
	again bool  // whether trying again may help
}

// byCode holds the codes whose meaning their HTTP status does not tell. Some
// servers send InvalidAccessKeyId with 404, and expired tokens come with 400.
var byCode = map[string]verdict{
	"NoSuchBucket": {err: remote.ErrNoBucket},
	"NoSuchKey":    {err: fs.ErrNotExist},

	"InvalidAccessKeyId":    {err: remote.ErrCredentials},
	"SignatureDoesNotMatch": {err: remote.ErrCredentials},
	"ExpiredToken":          {err: remote.ErrCredentials},
	"InvalidToken":          {err: remote.ErrCredentials},
	"TokenRefreshRequired":  {err: remote.ErrCredentials},
	"InvalidClientTokenId":  {err: remote.ErrCredentials},
	"InvalidSecurity":       {err: remote.ErrCredentials},
	"RequestTimeTooSkewed":  {err: remote.ErrCredentials},
	"RequestExpired":        {err: remote.ErrCredentials},

	// These come with status 200 too, where an answer began before its outcome.
	"InternalError":      {err: remote.ErrUnavailable, again: true},
	"SlowDown":           {err: remote.ErrUnavailable, again: true},
	"ServiceUnavailable": {err: remote.ErrUnavailable, again: true},

	"RequestTimeout":             {err: remote.ErrUnavailable, again: true},
	"RequestTimeoutException":    {err: remote.ErrUnavailable, again: true},
	"IncompleteBody":             {err: remote.ErrUnavailable, again: true},
	"OperationAborted":           {err: remote.ErrUnavailable, again: true},
	"ConditionalRequestConflict": {err: remote.ErrUnavailable, again: true},

	"NotImplemented": {err: remote.ErrUnsupported},
}

var byStatus = map[int]verdict{
	http.StatusUnauthorized:                 {err: remote.ErrCredentials},
	http.StatusForbidden:                    {err: fs.ErrPermission},
	http.StatusNotFound:                     {err: fs.ErrNotExist},
	http.StatusMethodNotAllowed:             {err: remote.ErrUnsupported},
	http.StatusPreconditionFailed:           {err: remote.ErrChanged},
	http.StatusRequestedRangeNotSatisfiable: {err: remote.ErrChanged},
	http.StatusRequestTimeout:               {err: remote.ErrUnavailable, again: true},
	http.StatusTooManyRequests:              {err: remote.ErrUnavailable, again: true},
	http.StatusInternalServerError:          {err: remote.ErrUnavailable, again: true},
	http.StatusNotImplemented:               {err: remote.ErrUnsupported},
	http.StatusBadGateway:                   {err: remote.ErrUnavailable, again: true},
	http.StatusServiceUnavailable:           {err: remote.ErrUnavailable, again: true},
	http.StatusGatewayTimeout:               {err: remote.ErrUnavailable, again: true},
}

// final marks an error as one of ours that is already in the words of package
// remote, and that trying again does not help.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

// judge says what an error of the client means.
func judge(err error) verdict {
	var resp minio.ErrorResponse
	var ours final
	var cert *tls.CertificateVerificationError
	switch {
	case errors.As(err, &ours):
		return verdict{}
	case errors.Is(err, errOther): // not final: to be sent again
		return verdict{err: remote.ErrUnavailable, again: true}
	case errors.As(err, &resp):
		if v, ok := byCode[resp.Code]; ok {
			return v
		}
		if v, ok := byStatus[resp.StatusCode]; ok {
			return v
		}
		// Without a status it is the client's own refusal or a broken answer.
		return verdict{again: resp.StatusCode >= 500}
	case errors.Is(err, errRefresh):
		return verdict{err: remote.ErrUnavailable, again: true}
	case errors.Is(err, remote.ErrCredentials):
		return verdict{}
	case errors.Is(err, context.Canceled):
		return verdict{} // the caller's: ours have a cause
	case errors.As(err, &cert):
		return verdict{err: remote.ErrUnavailable}
	}
	// Everything else went wrong on the way.
	return verdict{err: remote.ErrUnavailable, again: true}
}

// translate puts an error of the client into the words of package remote.
func translate(err error) error {
	v := judge(err)
	if v.err == nil || errors.Is(err, v.err) {
		return err
	}
	return fmt.Errorf("%w: %w", v.err, plain(err))
}

// plain names the code of a server's error, which its message may not, and
// leaves out the address of a request, which is long and may be signed.
func plain(err error) error {
	var resp minio.ErrorResponse
	if !errors.As(err, &resp) {
		var ue *url.Error
		if errors.As(err, &ue) {
			return ue.Err
		}
		return err
	}
	return fmt.Errorf("server says %s (status %d): %w", resp.Code, resp.StatusCode, err)
}

// code returns the S3 code of an error of the client, or "".
func code(err error) string {
	var resp minio.ErrorResponse
	errors.As(err, &resp)
	return resp.Code
}

// status returns the HTTP status of an error of the client, or 0.
func status(err error) int {
	var resp minio.ErrorResponse
	errors.As(err, &resp)
	return resp.StatusCode
}
