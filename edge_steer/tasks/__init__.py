"""Problems, how they are asked, how answers are judged, and a Backend's answers as rows."""
