package dicomweb

import (
	"net/http"
	"net/url"
	"strings"
)

// parameter is one name=value of a query string, decoded, in the order sent.
type parameter struct{ name, value string }

// parseQuery splits a query string at '&' alone: the values of accept hold semicolons, which the standard
// library refuses. A plus sign is a space, save in media types, where it belongs to the name.
func parseQuery(raw string) ([]parameter, *problem) {
	var params []parameter
	for field := range strings.SplitSeq(raw, "&") {
		if field == "" {
			continue
		}
		if len(params) == queryParametersMax {
			return nil, newProblem(http.StatusBadRequest, "too many query parameters", "send fewer; lists of UIDs and of includefield take commas")
		}
		name, value, _ := strings.Cut(field, "=")
		name, err := url.QueryUnescape(name)
		if err != nil {
			return nil, newProblem(http.StatusBadRequest, "a parameter name is not percent-encoded correctly", "encode it as RFC 3986 says")
		}
		unescape := url.QueryUnescape
		if name == "accept" {
			unescape = url.PathUnescape
		}
		value, err = unescape(value)
		if err != nil {
			return nil, newProblem(http.StatusBadRequest, "the value of parameter "+quote(name)+" is not percent-encoded correctly",
				"encode it as RFC 3986 says; a literal % is %25")
		}
		params = append(params, parameter{name: name, value: value})
	}
	return params, nil
}

// valuesOf joins the values of all parameters with the name by commas.
func valuesOf(params []parameter, name string) string {
	var values []string
	for _, p := range params {
		if p.name == name {
			values = append(values, p.value)
		}
	}
	return strings.Join(values, ",")
}
