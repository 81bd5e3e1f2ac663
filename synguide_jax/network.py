"""Whether there is a network, found out sooner than libraries give up."""

import http.client
import ssl
import threading
import urllib.error
import urllib.request


def is_reachable(url: str, seconds: float = 10.0) -> bool:
  """Whether a server answers at all, through a proxy where one is set.

  tfds tries for minutes, and huggingface_hub waits without end where a firewall
  swallows what it sends.

  Args:
    url: Any of the server.
    seconds: To wait for it in all, looking up its name included.
  """
  answers = []
  # Nothing else bounds the time that names and several addresses take.
  thread = threading.Thread(
    target=lambda: answers.append(_answers(url, seconds)), daemon=True
  )
  thread.start()
  thread.join(seconds)
  return answers == [True]


def _answers(url: str, seconds: float) -> bool:
  request = urllib.request.Request(url, method="HEAD")
  try:
    with urllib.request.urlopen(request, timeout=seconds):
      return True
  except urllib.error.HTTPError:
    return True
  except urllib.error.URLError as error:
    # The libraries may trust certificates of others.
    return isinstance(error.reason, ssl.SSLError)
  except TimeoutError:
    return False
  except (OSError, http.client.HTTPException):
    # Somebody hung up, or is no web server.
    return True
