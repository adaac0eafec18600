// registrar tells the kubelet of a CSI driver, as node-driver-registrar does: it asks the driver for
// its name and serves the kubelet's registration protocol on a socket of that name. It goes on until
// it is ended; a kubelet that refuses the driver ends it, so that its container starts again.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

type server struct {
	registration.UnimplementedRegistrationServer
	driver, endpoint string
}

func (s *server) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type:              registration.CSIPlugin,
		Name:              s.driver,
		Endpoint:          s.endpoint,
		SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (s *server) NotifyRegistrationStatus(
	_ context.Context, status *registration.RegistrationStatus,
) (*registration.RegistrationStatusResponse, error) {
	if !status.PluginRegistered {
		log.Fatalf("the kubelet refuses %s: %s", s.driver, status.Error)
	}
	log.Printf("the kubelet knows %s", s.driver)
	return &registration.RegistrationStatusResponse{}, nil
}

func main() {
	address := flag.String("csi-address", "/run/csi/socket", "the driver's socket")
	endpoint := flag.String("kubelet-registration-path", "", "the driver's socket as the kubelet finds it")
	directory := flag.String("plugin-registration-path", "/registration", "where the kubelet looks for plugins")
	listen := flag.String("http-endpoint", "", "address to answer /healthz at: whether the socket is there")
	flag.Int("v", 0, "accepted, and means nothing")
	flag.Parse()
	if *endpoint == "" {
		log.Fatal("--kubelet-registration-path is needed")
	}
	driver := driverName(*address)
	socket := filepath.Join(*directory, driver+"-reg.sock")
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		log.Fatal(err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		log.Fatal(err)
	}
	log.Printf("listening at %s for %s", socket, driver)
	if *listen != "" {
		go serveHealth(*listen, socket)
	}
	serving := grpc.NewServer()
	registration.RegisterRegistrationServer(serving, &server{driver: driver, endpoint: *endpoint})
	log.Fatal(serving.Serve(listener))
}

// serveHealth says whether the kubelet can still find us: somebody may have removed the socket.
func serveHealth(address, socket string) {
	http.HandleFunc("/healthz", func(response http.ResponseWriter, _ *http.Request) {
		if _, err := os.Stat(socket); err != nil {
			http.Error(response, err.Error(), http.StatusInternalServerError)
		}
	})
	log.Fatal(http.ListenAndServe(address, nil))
}

// driverName waits for the driver, which may start later.
func driverName(address string) string {
	connection, err := grpc.NewClient("unix:"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	deadline, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	request := &csi.GetPluginInfoRequest{}
	answer, err := csi.NewIdentityClient(connection).GetPluginInfo(deadline, request, grpc.WaitForReady(true))
	if err != nil {
		log.Fatalf("the driver at %s does not answer: %v", address, err)
	}
	return answer.Name
}
